"""A read-only proxy for containerd: it allows only the bridge's own calls, and removes specs from the responses.

See docs/proxy.md. ``policy`` defines the allowed calls, ``relay`` forwards them, ``socket`` creates the socket,
``waits`` waits for the exits of many tasks in one call, ``server`` runs them.
"""

import os

# gRPC's core logs plain text to stderr ("Got goaway ..." when containerd stops), where whalebridge writes JSON lines.
# Its failures also reach us as errors. gRPC reads this variable once, before it creates the first channel.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# gRPC's "event engine" reads sockets in its own threads and passes each response to ours, which costs a quarter more
# CPU time per call (gRPC 1.85, see docs/performance.md).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
