"""Tests of export/tensorrt."""
