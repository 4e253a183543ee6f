"""Simulator of containerd, kept accurate by contract tests, and of a whole host with faults in virtual time."""
