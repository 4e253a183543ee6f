"""Test that generated modules are current, compatible with containerd, and isolated from other modules."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from bridge.containerd.protos import POOL, containers_pb2, generate, tasks_pb2
from bridge.containerd.protos.payloads_pb2 import TaskExit


def test_generated_protos_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def test_outdated_protos_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in generate.generated(generate.ROOT).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    containerd, sinks = (tmp_path / each for each in generate.DIRECTORIES)
    (containerd / "tasks_pb2.py").write_text("# edited")
    (containerd / "version_pb2.pyi").unlink()
    (sinks / "obsolete_pb2.py").touch()
    assert [tmp_path / name for name in generate.differences(tmp_path)] == [
        containerd / "tasks_pb2.py",
        containerd / "version_pb2.pyi",
        sinks / "obsolete_pb2.py",
    ]
    monkeypatch.setattr(generate, "differences", lambda: ["tasks_pb2.py"])
    assert generate.main(["--check"]) == 1
    stderr = capsys.readouterr().err
    assert "tasks_pb2.py" in stderr
    assert "`make protos`" in stderr


def test_unexpected_protoc_output_is_rejected() -> None:
    with pytest.raises(SystemExit):
        generate.with_own_pool("DESCRIPTOR = something_new()", generate.DIRECTORIES[0])


def test_generated_protos_allow_same_messages_in_default_pool() -> None:
    full = FileDescriptorProto(
        name="github.com/containerd/containerd/api/events/task.proto", package="containerd.events"
    )
    full.message_type.add(name="TaskExit")
    descriptor_pool.Default().AddSerializedFile(full.SerializeToString())
    assert TaskExit.DESCRIPTOR.full_name == "containerd.events.TaskExit"
    assert "pid" in TaskExit.DESCRIPTOR.fields_by_name


@pytest.mark.parametrize("name", ["spec", "extensions"])
def test_generated_protos_omit_fields_with_secrets(name: str) -> None:
    assert name not in containers_pb2.Container.DESCRIPTOR.fields_by_name


def test_generated_services_equal_containerd_services() -> None:
    service = POOL.FindServiceByName("containerd.services.tasks.v1.Tasks")
    assert service.methods_by_name["Get"].input_type.full_name == tasks_pb2.GetRequest.DESCRIPTOR.full_name
