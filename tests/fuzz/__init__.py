"""Fuzz tests of everything that parses bytes of other programs: see CONTRIBUTING.md."""
