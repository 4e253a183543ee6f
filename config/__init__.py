"""Typed, documented models of all settings, and the sources of their values."""
