"""The REST transport: translates HTTP requests to calls of the data plane, and results to HTTP responses."""
