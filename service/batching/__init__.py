"""Dynamic batching: admission, queue, batches on engine slots, the latency bound."""
