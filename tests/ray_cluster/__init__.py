"""deploy/ray on a real cluster of Ray: `make test-ray`."""
