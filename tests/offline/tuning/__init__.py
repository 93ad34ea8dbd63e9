"""Tests of offline.tuning."""
