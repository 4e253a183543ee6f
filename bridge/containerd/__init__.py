"""The containerd client: calls, event stream and messages, and whalewatcher's engine client on top of them."""
