"""All fuzz targets, by name."""

from __future__ import annotations

from tests.fuzz import configuration, consumer, containerd, http2, outbox, output, proxy
from tests.fuzz.engine import Target

TARGETS: dict[str, Target] = {
    **containerd.TARGETS,
    **http2.TARGETS,
    **configuration.TARGETS,
    **outbox.TARGETS,
    **consumer.TARGETS,
    **proxy.TARGETS,
    **output.TARGETS,
}
