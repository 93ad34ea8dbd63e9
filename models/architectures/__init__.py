"""Networks that torchvision does not have."""
