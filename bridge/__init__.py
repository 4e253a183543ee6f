"""whalebridge tells brokers, truthfully, which containers live on a containerd node."""

__version__ = "0.1.0"
