"""The folder of an exported model: writing, reading and verifying it."""
