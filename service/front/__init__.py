"""Front processes: REST and gRPC apart from the engines, in as many processes as there are cores to feed."""
