"""Conformance vectors: small topics, with the state and the findings that a consumer must have after them."""
