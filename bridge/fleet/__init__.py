"""The consumers' side: reading what bridges have published, and folding it into what lives."""
