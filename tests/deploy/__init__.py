"""Tests of what deploy/ has for clusters."""
