"""Weights of networks: published files, files of the user, ONNX files."""
