"""The HTTP endpoint: readiness, metrics and the status page. Imported only if it is enabled."""
