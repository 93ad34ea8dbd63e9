"""Selects the engine that serves a model on this machine, and gives the reason against each other one."""
