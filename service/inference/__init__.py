"""From the bytes of an image to an answer, without HTTP and without protobuf."""
