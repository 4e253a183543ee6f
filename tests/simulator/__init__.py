"""A stand-in for containerd, for what a real one cannot be brought to do, and the contract that keeps it honest."""
