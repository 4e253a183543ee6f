"""NATS: records into a JetStream stream, with an optional bucket of the current state, or into core NATS."""
