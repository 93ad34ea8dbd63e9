"""The data plane over gRPC: inference servers in other processes answer."""
