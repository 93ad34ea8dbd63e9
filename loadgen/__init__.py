"""A load generator for servers of image classifiers: it asks, measures how long the answers take, and counts errors."""
