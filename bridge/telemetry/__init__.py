"""Logs, counters, status, and notifications to the service manager."""
