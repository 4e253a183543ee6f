from __future__ import annotations

import pytest

from bridge.core.container_metadata import (
    build_metadata,
    display_id,
    incarnation_id,
    parse_display_id,
    with_image_digest,
    with_known_digest,
)
from bridge.core.containerd_model import ContainerKey, Image, PodReference
from bridge.core.label_rules import REDACTED, LabelRules

ALL = LabelRules.keep_all()
SHOP = ContainerKey("shop", "919f59b77021")
POD = ContainerKey("k8s.io", "5d2c")

POD_LABELS = {
    "io.kubernetes.pod.name": "web-7f9",
    "io.kubernetes.pod.namespace": "prod",
    "io.kubernetes.pod.uid": "1b2c",
}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (ContainerKey("default", "abc"), "abc"),
        (ContainerKey("shop", "abc"), "shop/abc"),
        (ContainerKey("shop.eu-1", "abc"), "shop.eu-1/abc"),
    ],
)
def test_display_id_has_namespace_prefix_unless_default(key: ContainerKey, text: str) -> None:
    assert display_id(key) == text
    assert parse_display_id(text) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("default/abc", ContainerKey("default", "abc")),
        ("shop/a/b", ContainerKey("shop", "a/b")),
        ("/abc", ContainerKey("", "abc")),
        ("shop/", ContainerKey("shop", "")),
        ("", ContainerKey("default", "")),
    ],
)
def test_display_id_is_split_at_first_slash(text: str, key: ContainerKey) -> None:
    assert parse_display_id(text) == key


def test_incarnation_is_derived_from_boot_and_pid() -> None:
    boot = "5f3c9a1e-2c1d-4b0e-8c5e-0d6b8c1f2a3b"
    assert incarnation_id(boot, 20786) == "5f3c9a1e-20786"
    assert incarnation_id(boot, 46, 1) == "5f3c9a1e-46-2"
    assert len({incarnation_id(boot, 1), incarnation_id(boot, 2), incarnation_id("6" + boot[1:], 1)}) == 3


# --- metadata ---


def test_metadata_takes_name_project_and_service_from_labels() -> None:
    labels = {
        "nerdctl/name": "web-shop-web-1",
        "com.docker.compose.project": "web-shop",
        "com.docker.compose.service": "web",
    }
    metadata = build_metadata(SHOP, labels, ALL, image="busybox", runtime="runc", created_at=1, updated_at=2)
    assert (metadata.name, metadata.project, metadata.service) == ("web-shop-web-1", "web-shop", "web")
    assert (metadata.key, metadata.image, metadata.runtime, metadata.created_at, metadata.updated_at) == (
        SHOP,
        "busybox",
        "runc",
        1,
        2,
    )
    assert (metadata.labels, metadata.kind, metadata.pod, metadata.pod_labels) == (labels, "container", None, None)


@pytest.mark.parametrize("labels", [{}, {"nerdctl/name": ""}])
def test_metadata_name_is_id_when_name_label_is_missing(labels: dict[str, str]) -> None:
    metadata = build_metadata(SHOP, labels, ALL)
    assert (metadata.name, metadata.project, metadata.service, metadata.labels) == (SHOP.id, "", "", labels)


def test_metadata_labels_are_none_when_unknown() -> None:
    metadata = build_metadata(SHOP, None, ALL)
    assert (metadata.name, metadata.labels) == (SHOP.id, None)


def test_label_rules_do_not_affect_name_and_project() -> None:
    rules = LabelRules(include=["*"], exclude=["nerdctl/*", "com.*"], redact=["*password*"])
    labels = {"nerdctl/name": "web", "com.docker.compose.project": "shop", "password": "hunter2"}
    metadata = build_metadata(SHOP, labels, rules)
    assert (metadata.name, metadata.project, metadata.labels) == ("web", "shop", {"password": REDACTED})


def test_cri_container_has_pod_reference() -> None:
    labels = POD_LABELS | {"io.cri-containerd.kind": "container", "io.kubernetes.container.name": "app"}
    metadata = build_metadata(POD, labels, ALL)
    assert metadata.kind == "container"
    assert metadata.pod == PodReference("web-7f9", "prod", "1b2c", "app")
    assert metadata.pod_labels is None


def test_sandbox_has_pod_labels() -> None:
    labels = POD_LABELS | {"io.cri-containerd.kind": "sandbox", "app": "web", "token": "hunter2"}
    metadata = build_metadata(POD, labels, LabelRules(include=["*"], exclude=[], redact=["token"]))
    assert metadata.kind == "sandbox"
    assert metadata.pod == PodReference("web-7f9", "prod", "1b2c", "")
    assert metadata.pod_labels == {"app": "web", "token": REDACTED}


def test_cri_labels_are_ignored_in_other_namespaces() -> None:
    labels = POD_LABELS | {"io.cri-containerd.kind": "sandbox"}
    metadata = build_metadata(SHOP, labels, ALL)
    assert (metadata.kind, metadata.pod, metadata.pod_labels) == ("container", None, None)


@pytest.mark.parametrize("missing", ["io.cri-containerd.kind", "io.kubernetes.pod.uid"])
def test_pod_is_none_when_required_label_is_missing(missing: str) -> None:
    labels = POD_LABELS | {"io.cri-containerd.kind": "container"}
    del labels[missing]
    assert build_metadata(POD, labels, ALL).pod is None


def test_pod_needs_only_uid() -> None:
    labels = {"io.cri-containerd.kind": "container", "io.kubernetes.pod.uid": "1b2c"}
    assert build_metadata(POD, labels, ALL).pod == PodReference("", "", "1b2c", "")


def test_scope_predicate_receives_labels_removed_by_rules() -> None:
    calls: list[dict[str, object]] = []

    def reject_all(**arguments: object) -> bool:
        calls.append(arguments)
        return False

    labels = {"tier": "front", "nerdctl/name": "web", "com.docker.compose.project": "shop"}
    drop_all = LabelRules(include=(), exclude=(), redact=())
    metadata = build_metadata(ContainerKey("shop", "c"), labels, drop_all, reject_all)
    assert (metadata.in_scope, metadata.labels) == (False, {})
    assert calls == [{"kind": "container", "name": "web", "project": "shop", "labels": labels, "id": "c"}]


def test_container_with_unknown_labels_is_in_scope() -> None:
    def fail(**_: object) -> bool:
        raise AssertionError

    assert build_metadata(ContainerKey("shop", "c"), None, LabelRules.keep_all(), fail).in_scope


# --- digests of images ---

CREATED_AT = 1_795_447_267_525_245_796
DIGEST = "sha256:" + "1f" * 32


@pytest.mark.parametrize(
    ("image", "now", "certain"),
    [
        pytest.param(Image(DIGEST, CREATED_AT - 1), CREATED_AT + 1, True, id="unchanged since before the creation"),
        pytest.param(Image(DIGEST, CREATED_AT), CREATED_AT, True, id="changed at the moment of the creation"),
        pytest.param(Image("sha512:" + "1f" * 64, 1), CREATED_AT, True, id="another algorithm"),
        pytest.param(Image(DIGEST, CREATED_AT + 1), CREATED_AT + 2, False, id="changed after the creation"),
        pytest.param(Image(DIGEST, CREATED_AT - 1), CREATED_AT - 1, False, id="clock set back since the creation"),
        pytest.param(Image(DIGEST, 1_795_447_260_000_000_000), CREATED_AT, False, id="time of a reproducible build"),
        pytest.param(Image(DIGEST, None), CREATED_AT, False, id="unknown time"),
        pytest.param(Image("", 1), CREATED_AT, False, id="no digest"),
        pytest.param(Image(DIGEST + "0", 1), CREATED_AT, False, id="not a digest"),
        pytest.param(None, CREATED_AT, False, id="no image"),
    ],
)
def test_image_digest_is_set_only_if_certain(image: Image | None, now: int, certain: bool) -> None:
    metadata = build_metadata(SHOP, {}, ALL, image="busybox", created_at=CREATED_AT)
    digest = with_image_digest(metadata, image, now).image_digest
    assert digest == (image.digest if image and certain else None)
    assert with_image_digest(build_metadata(SHOP, {}, ALL, image="busybox"), image, now).image_digest is None


@pytest.mark.parametrize(
    ("image", "created_at", "digest"),
    [
        pytest.param("busybox", CREATED_AT, DIGEST, id="the same container"),
        pytest.param("busybox", CREATED_AT + 1, None, id="recreated"),
        pytest.param("alpine", CREATED_AT, None, id="another image"),
        pytest.param("busybox", None, None, id="unknown"),
    ],
)
def test_known_digest_is_kept_for_same_container(image: str, created_at: int | None, digest: str | None) -> None:
    before = build_metadata(SHOP, {}, ALL, image="busybox", created_at=CREATED_AT)
    known = with_image_digest(before, Image(DIGEST, 1), CREATED_AT)
    metadata = build_metadata(SHOP, {"tier": "back"}, ALL, image=image, created_at=created_at)
    kept = with_known_digest(metadata, known)
    assert (kept.image_digest, kept.labels) == (digest, {"tier": "back"})
    assert with_known_digest(metadata, before) == with_known_digest(metadata, None) == metadata
