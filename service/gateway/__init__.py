"""The service over gRPC to inference servers: the same answers as in one process, from any of their replicas."""
