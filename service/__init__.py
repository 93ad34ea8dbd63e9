"""Serves exported classifiers over REST and gRPC. It reads artifacts and needs no torch."""
