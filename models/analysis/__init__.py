"""Layers, costs and receptive fields of networks."""
