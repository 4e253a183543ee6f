"""containerd: its client, its event stream, its messages, and whalewatcher's engine client on top of them."""
