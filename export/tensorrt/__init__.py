"""TensorRT engines from an exported ONNX file."""
