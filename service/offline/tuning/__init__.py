"""Measures how an engine is best laid out on this machine; what it finds is kept by `models.artifact.tuning`."""
