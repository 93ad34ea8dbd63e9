"""A rolling update as Kubernetes does it, without Kubernetes: `make test-kubelet`."""
