"""Tests. Each docstring states the property that holds."""
