"""The outbox: stores records until the sinks acknowledge them."""
