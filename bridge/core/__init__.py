"""Core logic: no I/O, no clock, no randomness, no logging, no threads."""
