"""The commands of the program: one module each, named after the command."""
