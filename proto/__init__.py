"""The gRPC contract: `topfive/v1/classifier.proto`, and the code generated from it by `make proto`."""
