"""From a catalog entry to an artifact: network, weights, ONNX graph, and the gate that compares it with PyTorch."""
