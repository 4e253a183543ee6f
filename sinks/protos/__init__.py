"""OpenTelemetry's log records and responses: trimmed .proto files, and modules generated from them (``make protos``).

The generated modules register their descriptors in a separate pool (``POOL``), because another package in the same
process may register OpenTelemetry's full messages under the same names. The package ``opentelemetry-proto``, which has
these, would limit the version of protobuf; the tests compare with it.
"""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
