"""Where records wait for the sinks' acknowledgements."""
