"""Where weights come from: the catalog, files, downloads, ONNX."""
