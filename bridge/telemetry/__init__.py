"""What the process says of itself; for now, log lines."""
