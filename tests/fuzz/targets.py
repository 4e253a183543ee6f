"""All fuzz targets, by name."""

from __future__ import annotations

from tests.fuzz import configuration, consumer, containerd, outbox, output, proxy
from tests.fuzz.engine import Target

TARGETS: dict[str, Target] = {
    **containerd.TARGETS,
    **configuration.TARGETS,
    **outbox.TARGETS,
    **consumer.TARGETS,
    **proxy.TARGETS,
    **output.TARGETS,
}
