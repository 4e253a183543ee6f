"""Programs to try whalebridge with."""
