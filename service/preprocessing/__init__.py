"""Makes samples from the bytes of an image: decode, resize, crop."""
