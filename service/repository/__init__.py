"""Which models there are, loading and unloading them, and what is known of each."""
