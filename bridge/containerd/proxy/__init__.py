"""A read-only proxy for containerd: the bridge's own calls pass, without specs in the answers; nothing else does.

See docs/proxy.md. ``rules`` says what passes, ``relay`` passes it, ``listening`` makes the socket, ``server`` puts them
together.
"""
