"""The data plane of a gateway: inference servers in other processes answer over gRPC."""
