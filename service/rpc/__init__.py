"""gRPC over the classifier: translates messages to its one method and back."""
