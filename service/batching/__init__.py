"""Dynamic batching: admission, queue, batches in the slots of an engine, the latency bound."""
