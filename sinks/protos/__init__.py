"""OpenTelemetry's log records: a trimmed .proto file, and the module generated from it (``make protos``).

The generated module registers its descriptors in a separate pool (``POOL``), because another package in the same
process may register OpenTelemetry's full messages under the same names. The package ``opentelemetry-proto``, which has
these, would limit the version of protobuf; the tests compare with it.
"""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
