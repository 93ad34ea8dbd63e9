"""Measures which engine serves a model best on this CPU; `models.artifact.tuning` keeps the record."""
