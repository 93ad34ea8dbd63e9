"""Dynamic batching: admission, queue, dispatch of batches to engine slots, the latency bound."""
