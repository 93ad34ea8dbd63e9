"""A load generator for servers of image classifiers: it sends requests, measures latency and counts errors."""
