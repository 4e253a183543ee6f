"""Who a container is: display ids, names, composer projects, services and pods, all told from labels.

The label names and the rules are whalewatcher's, nerdctl's and CRI's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bridge.core.model import ContainerKey, Kind, Labels, Metadata, PodReference

if TYPE_CHECKING:
    from bridge.core.labels import LabelRules

DEFAULT_NAMESPACE = "default"
KUBERNETES_NAMESPACE = "k8s.io"
DOCKER_NAMESPACE = "moby"

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


class Scope(Protocol):
    """Whether a container is one of those that are published; ``labels`` are all of its labels."""

    def __call__(self, *, kind: str, name: str, project: str, labels: Labels, id: str) -> bool:
        """Tell whether it is."""


def everything(**_: object) -> bool:
    """Let every container be in scope."""
    return True


def display_id(key: ContainerKey) -> str:
    """Return whalewatcher's display id: ``NAMESPACE/ID``, the bare id in namespace ``default``."""
    return key.id if key.namespace == DEFAULT_NAMESPACE else f"{key.namespace}/{key.id}"


def parse_display_id(text: str) -> ContainerKey:
    """Split a display id at its first "/"; none means namespace ``default`` (whalewatcher's decoding)."""
    namespace, slash, id_ = text.partition("/")
    return ContainerKey(namespace, id_) if slash else ContainerKey(DEFAULT_NAMESPACE, text)


def incarnation(boot_id: str, pid: int) -> str:
    """Name one life of a container: the same however often it is told, another for the next life under the id.

    A pid does not recur within a boot for a living container, nor do boots.
    """
    return f"{boot_id[:8]}-{pid}"


def describe(
    key: ContainerKey,
    labels: Labels | None,
    rules: LabelRules,
    scope: Scope = everything,
    *,
    image: str = "",
    runtime: str = "",
    created_at: int | None = None,
    updated_at: int | None = None,
) -> Metadata:
    """Tell from a container's raw labels who it is and whether it is in scope; keep of them what the rules let through.

    ``labels`` is None where the record could not be asked for any more: then the id serves as name, and it is in
    scope, since one that nobody hears of is worse than one too many.
    """
    told = labels or {}
    kind: Kind = "sandbox" if _is_cri(key, told) and told.get(CRI_KIND_LABEL) == "sandbox" else "container"
    name, project = told.get(NERDCTL_NAME_LABEL) or key.id, told.get(COMPOSER_PROJECT_LABEL, "")
    return Metadata(
        key=key,
        name=name,
        project=project,
        service=told.get(COMPOSER_SERVICE_LABEL, ""),
        image=image,
        runtime=runtime,
        created_at=created_at,
        updated_at=updated_at,
        labels=None if labels is None else rules.apply(labels),
        kind=kind,
        pod=_pod(key, told),
        pod_labels=rules.apply(_own_pod_labels(told)) if kind == "sandbox" else None,
        in_scope=labels is None or scope(kind=kind, name=name, project=project, labels=labels, id=key.id),
    )


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


def _own_pod_labels(labels: Labels) -> Labels:
    """Leave out what CRI adds to a sandbox's labels: the rest is what the pod was given."""
    return {key: value for key, value in labels.items() if not key.startswith((CRI_LABEL_PREFIX, POD_LABEL_PREFIX))}
