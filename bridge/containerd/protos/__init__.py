"""containerd's gRPC messages: trimmed .proto files of our own, and what ``generate.py`` makes of them.

Packages, names and numbers are containerd's, so that both sides understand each other; fields that nobody here reads
are left out, and so are never parsed. The generated modules keep their descriptors in a pool of their own (``POOL``):
another package in the same process may know containerd's full messages under the same names.
"""

from __future__ import annotations

from google.protobuf import any_pb2, empty_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
for _wellknown in (any_pb2, empty_pb2, timestamp_pb2):
    POOL.AddSerializedFile(_wellknown.DESCRIPTOR.serialized_pb)
