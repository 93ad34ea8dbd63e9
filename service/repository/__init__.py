"""The model repository: lists models, loads and unloads them, and describes them."""
