"""Publishes container lifecycle events from containerd to Kafka, NATS, files or standard output."""

__version__ = "0.1.0"
