"""Tests that need an NVIDIA card: `make test-gpu`. Elsewhere each is skipped and says why."""
