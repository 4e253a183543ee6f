"""What the bridge tells over HTTP: readiness, metrics, a page for people. Imported only where wanted."""
