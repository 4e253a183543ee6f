"""Where records go: one module a broker, one library each, behind the port ``bridge.core.ports.Sink``."""
