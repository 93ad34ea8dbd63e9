"""Classifies the bytes of an image, independent of HTTP and protobuf."""
