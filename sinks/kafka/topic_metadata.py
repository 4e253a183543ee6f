"""The request for a topic's metadata, in a version with topic ids, which aiokafka lacks."""

from __future__ import annotations

from io import BytesIO
from typing import Any, TypeAlias

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v4, MetadataRequest_v5
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

_UUID_BYTES = 16
_NO_ID = bytes(_UUID_BYTES)
_TEXT = CompactString("utf-8")
_WITH_ID = 10  # the version that adds topic ids


class _Uuid(AbstractType):  # type: ignore[misc] # aiokafka has no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(_UUID_BYTES)


class MetadataResponse_v10(Response):  # type: ignore[misc] # noqa: N801 (aiokafka's naming)
    """Kafka's MetadataResponse, version 10."""

    API_KEY = 3
    API_VERSION = _WITH_ID
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class MetadataRequest_v10(RequestStruct):  # type: ignore[misc] # noqa: N801 (aiokafka's naming)
    """Kafka's MetadataRequest, version 10."""

    API_KEY = 3
    API_VERSION = _WITH_ID
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponse_v10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


_Versions: TypeAlias = MetadataRequest_v4 | MetadataRequest_v5 | MetadataRequest_v10


class TopicMetadataRequest(Request[_Versions]):  # type: ignore[misc] # aiokafka has no types
    """A request for the metadata of one topic; it never creates the topic, as some brokers would."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: Any) -> Any:
        """Return the request in the version that aiokafka has negotiated."""
        if request_struct_class.API_VERSION < _WITH_ID:
            return request_struct_class([self._topic], False)
        return request_struct_class([(_NO_ID, self._topic, {})], False, False, False, {})


def topic_id(topic_metadata: tuple[Any, ...]) -> str:
    """Return the id of a topic in a response; "" if the brokers are older than 2.8 and do not report it."""
    value = topic_metadata[2]
    return value.hex() if isinstance(value, bytes) else ""
