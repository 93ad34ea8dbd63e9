"""Measurements of the service on this machine; each figure in the documentation names the command that gives it."""
