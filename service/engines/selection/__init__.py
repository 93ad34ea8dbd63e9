"""Which engine serves a model on this machine, and why the others do not."""
