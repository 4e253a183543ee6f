"""Publishes container lifecycle events from containerd to Kafka, NATS, HTTP receivers, files or standard output."""

__version__ = "0.1.0"
