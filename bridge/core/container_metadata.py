"""Identify containers by their labels: display ids, names, compose projects, services and pods; digests of images.

The label names and the rules are those of whalewatcher, nerdctl and CRI.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bridge.core.containerd_model import ContainerKey, Image, Kind, Labels, Metadata, PodReference
from bridge.core.filters import ContainerPredicate, match_all
from bridge.core.time import SECOND

if TYPE_CHECKING:
    from bridge.core.label_rules import LabelRules

DEFAULT_NAMESPACE = "default"
KUBERNETES_NAMESPACE = "k8s.io"

COMPOSER_PROJECT_LABEL = "com.docker.compose.project"
COMPOSER_SERVICE_LABEL = "com.docker.compose.service"
NERDCTL_LABEL_PREFIX = "nerdctl/"
NERDCTL_NAME_LABEL = NERDCTL_LABEL_PREFIX + "name"

CRI_LABEL_PREFIX = "io.cri-containerd."
CRI_KIND_LABEL = CRI_LABEL_PREFIX + "kind"
POD_LABEL_PREFIX = "io.kubernetes.pod."
POD_NAME_LABEL = POD_LABEL_PREFIX + "name"
POD_NAMESPACE_LABEL = POD_LABEL_PREFIX + "namespace"
POD_UID_LABEL = POD_LABEL_PREFIX + "uid"
POD_CONTAINER_LABEL = "io.kubernetes.container.name"

# CPython 3.12.0 to 3.12.6 never frees interned strings (https://github.com/python/cpython/issues/113993).
intern = str if (3, 12) <= sys.version_info < (3, 12, 7) else sys.intern

# OCI's grammar for digests, for the algorithms that containerd supports.
_DIGEST = re.compile(r"sha(256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128})")


def display_id(key: ContainerKey) -> str:
    """Return whalewatcher's display id: ``NAMESPACE/ID``, the bare id in namespace ``default``."""
    return key.id if key.namespace == DEFAULT_NAMESPACE else f"{key.namespace}/{key.id}"


def parse_display_id(text: str) -> ContainerKey:
    """Split a display id at its first "/"; without "/" the namespace is ``default`` (whalewatcher's decoding)."""
    namespace, slash, id_ = text.partition("/")
    return ContainerKey(namespace, id_) if slash else ContainerKey(DEFAULT_NAMESPACE, text)


def incarnation_id(boot_id: str, pid: int, pid_cycle: int = 0) -> str:
    """Return the id of one run of a container: stable across restarts of the bridge, different for any other run.

    Boot ids never repeat. Within a boot, pids may: ``pid_cycle`` counts the runs of the container whose pid was not
    greater than that of the run before, so that pid and cycle never repeat.
    """
    return f"{boot_id[:8]}-{pid}-{pid_cycle + 1}" if pid_cycle else f"{boot_id[:8]}-{pid}"


def build_metadata(
    key: ContainerKey,
    labels: Labels | None,
    rules: LabelRules,
    container_filter: ContainerPredicate = match_all,
    *,
    image: str = "",
    runtime: str = "",
    created_at: int | None = None,
    updated_at: int | None = None,
) -> Metadata:
    """Build a container's metadata from its original labels: identity, scope, and the labels that the rules keep.

    ``labels`` is None if the metadata could not be fetched: then the id serves as the name, and the container is in
    scope, because a missing container is worse for consumers than a superfluous one. The strings of labels are
    expected to be interned, as those of the decoder are: most of them occur in many containers.
    """
    known = labels or {}
    kind: Kind = "sandbox" if _is_cri(key, known) and known.get(CRI_KIND_LABEL) == "sandbox" else "container"
    name, project = known.get(NERDCTL_NAME_LABEL) or key.id, known.get(COMPOSER_PROJECT_LABEL, "")
    return Metadata(
        key=ContainerKey(intern(key.namespace), key.id),
        name=name,
        project=project,
        service=known.get(COMPOSER_SERVICE_LABEL, ""),
        image=intern(image),
        runtime=intern(runtime),
        created_at=created_at,
        updated_at=updated_at,
        labels=None if labels is None else rules.apply(labels),
        kind=kind,
        pod=_pod(key, known),
        pod_labels=rules.apply(own_pod_labels(known)) if kind == "sandbox" else None,
        in_scope=labels is None or container_filter(kind=kind, name=name, project=project, labels=labels, id=key.id),
    )


def share_strings(metadata: Metadata) -> Metadata:
    """Return equal metadata whose strings are those of other containers, where they are equal; most of them are."""
    pod = metadata.pod
    return replace(
        metadata,
        key=ContainerKey(intern(metadata.key.namespace), metadata.key.id),
        project=intern(metadata.project),
        service=intern(metadata.service),
        image=intern(metadata.image),
        runtime=intern(metadata.runtime),
        image_digest=metadata.image_digest and intern(metadata.image_digest),
        labels=_share_labels(metadata.labels),
        pod=pod and PodReference(intern(pod.name), intern(pod.namespace), intern(pod.uid), intern(pod.container)),
        pod_labels=_share_labels(metadata.pod_labels),
    )


def _share_labels(labels: Labels | None) -> Labels | None:
    return None if labels is None else {intern(key): intern(value) for key, value in labels.items()}


def _is_cri(key: ContainerKey, labels: Labels) -> bool:
    return key.namespace == KUBERNETES_NAMESPACE and CRI_KIND_LABEL in labels


def _pod(key: ContainerKey, labels: Labels) -> PodReference | None:
    if not _is_cri(key, labels) or POD_UID_LABEL not in labels:
        return None
    return PodReference(
        name=labels.get(POD_NAME_LABEL, ""),
        namespace=labels.get(POD_NAMESPACE_LABEL, ""),
        uid=labels[POD_UID_LABEL],
        container=labels.get(POD_CONTAINER_LABEL, ""),
    )


def own_pod_labels(labels: Labels) -> Labels:
    """Return the pod's own labels: the labels of its sandbox without those that CRI adds."""
    return {key: value for key, value in labels.items() if not key.startswith((CRI_LABEL_PREFIX, POD_LABEL_PREFIX))}


def with_image_digest(metadata: Metadata, image: Image | None, now: int) -> Metadata:
    """Return a container's metadata with the digest that its image's name pointed to when it was created, if certain.

    ``image`` is what containerd returned for the name, to a request from after the creation: if the image was not
    updated in between, the name has pointed to the same digest all the time. ``now`` (wall clock) is the time after the
    request. Two times prove nothing: one before which the clock was set back, and a whole second, because clients may
    set ``updated_at`` to the time of a reproducible build (SOURCE_DATE_EPOCH).
    """
    created_at = metadata.created_at
    if image is None or created_at is None or image.updated_at is None or not _DIGEST.fullmatch(image.digest):
        return metadata
    if image.updated_at <= created_at <= now and image.updated_at % SECOND:
        return replace(metadata, image_digest=intern(image.digest))
    return metadata


def with_known_digest(metadata: Metadata, known: Metadata | None) -> Metadata:
    """Return a container's metadata with the digest of its image that is known of the same container, if one is."""
    if known is None or known.image_digest is None or metadata.image_digest is not None:
        return metadata
    if (known.created_at, known.image) != (metadata.created_at, metadata.image):
        return metadata
    return replace(metadata, image_digest=known.image_digest)
