"""Makes artifacts: from catalog networks, from any ONNX file, and TensorRT engines for them."""
