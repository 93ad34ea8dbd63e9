"""Mutated images, forms and artifacts; `make fuzz` runs it for long."""
