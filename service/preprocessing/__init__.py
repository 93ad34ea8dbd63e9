"""From the bytes of an image to samples: decode, resize, crop."""
