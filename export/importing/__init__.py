"""ONNX files of other origin as artifacts."""
