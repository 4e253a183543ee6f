"""Real peers for the tests (containerd, Docker, Kafka, NATS, ...), installed in a cache and run in private directories.

Standard library only: `python3 -m tests.testbed install` runs before a virtual environment exists.
"""
