"""A read-only proxy for containerd: it allows only the bridge's own calls, and removes specs from the responses.

See docs/proxy.md. ``policy`` defines the allowed calls, ``relay`` forwards them, ``socket`` creates the socket,
``server`` runs them.
"""
