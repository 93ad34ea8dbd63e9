"""The gRPC transport: translates messages to calls of the data plane, and results to messages."""
