"""Sinks: one module or package per destination, each behind the port ``bridge.core.ports.Sink``."""
