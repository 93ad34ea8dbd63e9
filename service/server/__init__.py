"""Builds the server from the settings, starts it and stops it."""
