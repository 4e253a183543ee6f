"""containerd's gRPC messages: trimmed .proto files, and the modules that ``generate.py`` generates from them.

Packages, names and numbers are containerd's; fields that whalebridge does not read are omitted and therefore never
parsed. The generated modules register their descriptors in a separate pool (``POOL``), because another package in the
same process may register containerd's full messages under the same names.
"""

from __future__ import annotations

from google.protobuf import any_pb2, empty_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
for _wellknown in (any_pb2, empty_pb2, timestamp_pb2):
    POOL.AddSerializedFile(_wellknown.DESCRIPTOR.serialized_pb)
