"""Simulator of containerd for faults that a real one does not produce on demand; contract tests keep it accurate."""
