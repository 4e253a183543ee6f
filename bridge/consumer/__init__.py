"""The consumer side: reads published records and projects them to the set of running containers."""
