"""Tests of export/importing."""
