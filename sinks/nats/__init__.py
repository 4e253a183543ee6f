"""The NATS sink: records in a JetStream stream, optionally with the current state in a bucket, or on core NATS."""
