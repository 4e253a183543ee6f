"""What a person can set: typed, documented models, and where their values come from."""
