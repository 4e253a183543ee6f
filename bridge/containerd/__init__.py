"""containerd: its client, its event stream, its messages, and whalewatcher's engine client on top of them."""

import os

# gRPC's core writes notes of its own to stderr ("Got goaway ..." when containerd stops), where logs are JSON lines.
# What goes wrong is told by our errors. It looks at this variable once, before its first channel.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Its "event engine" reads sockets in threads of its own and hands each message over to ours, which doubles the CPU that
# a stream of small messages takes (measured with gRPC 1.85: docs/performance.md). Without it the one who waits reads.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
