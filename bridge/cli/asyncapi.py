"""The AsyncAPI 3 document of what the sinks publish: channels, keys, headers and messages of Kafka and NATS."""

from __future__ import annotations

from typing import Any, TypeAlias

from bridge.core.records import RECORD_TYPES, SCHEMA_ID, VERSION, schema_components
from sinks.cloudevents import (
    JSON_CONTENT_TYPE,
    KAFKA_ENVELOPE_CONTENT_TYPE,
    NATS_ENVELOPE_CONTENT_TYPE,
    PARTITION_KEY,
    event_type,
)
from sinks.nats.messages import MESSAGE_ID

Document: TypeAlias = dict[str, Any]
_Fields: TypeAlias = dict[str, tuple[str, str]]
"""Text fields: for each name, a description and an example."""

_SCHEMAS = "#/components/schemas/{name}"
_EXAMPLE_SOURCE = "//node-1/containerd.io/dda674a4-41f6-4b1c-8a0a-b99f8290adba"
_ENCODING = "Bytes other than letters, digits, _ and - are written as =HH, an empty value as _."
_SOURCE_KEY = "The source: HOST/ENGINE, each part percent-encoded."
_PARTITION_KEY = ("The key of the message, in Kafka only.", "node-1/dda674a4-41f6-4b1c-8a0a-b99f8290adba")
_MESSAGE_ID: _Fields = {MESSAGE_ID: ("The source and the id, joined by /.", f"{_EXAMPLE_SOURCE}/7-6")}
_ATTRIBUTES: _Fields = {
    "specversion": ("Version of CloudEvents.", "1.0"),
    "id": (
        "Unique within the source: EPOCH-SEQUENCE, with a suffix for records without a sequence of their own.",
        "7-6",
    ),
    "source": ("//HOST/containerd.io/ENGINE", _EXAMPLE_SOURCE),
    "type": ("io.whalebridge.container.TYPE; of control records io.whalebridge.TYPE.", event_type("exited")),
    "time": ("The record's timestamp.", "2026-11-25T19:48:21.152667048Z"),
    "dataschema": ("Names the JSON Schema of the record.", SCHEMA_ID),
    "sequence": ("EPOCH-SEQUENCE, which sorts as text.", "7-00000000000000000006"),
    "subject": ("The record's id; missing in control records.", "shop/web-1"),
}
"""CloudEvents attributes: their meaning, and an example."""


def asyncapi_document() -> Document:
    """Return the document. It describes the sinks' default: JSON records with CloudEvents headers (binary mode)."""
    reference, schemas = schema_components(_SCHEMAS)
    for type_ in RECORD_TYPES:
        schemas[type_] = {"allOf": [reference, {"type": "object", "properties": {"type": {"const": type_}}}]}
    schemas["stateEntry"] = {
        "description": "The last record of a running container, or the last snapshot_completed record of a source.",
        "allOf": [
            reference,
            {
                "type": "object",
                "required": ["snapshot_id"],
                "properties": {
                    "snapshot_id": {
                        "type": ["string", "null"],
                        "description": "The snapshot during which the record was published, or the last one before it.",
                    }
                },
            },
        ],
    }
    envelope = _attributes("", {"datacontenttype": ("Media type of data.", JSON_CONTENT_TYPE)})
    envelope["required"].append("data")
    envelope["properties"] |= _strings({PARTITION_KEY: _PARTITION_KEY})["properties"]  # only in Kafka
    envelope["properties"]["data"] = reference
    schemas["cloudEvent"] = envelope
    channels = {
        "kafkaRecords": _channel(
            "kafka",
            "{topic}",
            "All records. One source is in one partition, in order.",
            {"topic": "Setting topic of the sink."},
            _record_messages("kafka"),
        ),
        "kafkaState": _channel(
            "kafka",
            "{stateTopic}",
            "The current state, in a compacted topic. A message without value removes an entry.",
            {"stateTopic": "Setting state_topic of the sink."},
            {"stateEntry": _state_message() | {"bindings": _kafka_key("HOST/ENGINE/NAMESPACE/ID, or HOST/ENGINE.")}},
        ),
        "natsRecords": _channel(
            "nats",
            "{prefix}.{host}.{namespace}.{type}",
            "All records, in a JetStream stream. The setting subject_template can change the subject.",
            {
                "prefix": "Setting subject_prefix of the sink.",
                "host": f"Name of the node. {_ENCODING}",
                "namespace": f"containerd's namespace; _ in control records. {_ENCODING}",
                "type": "Type of the record.",
            },
            _record_messages("nats"),
        ),
        "natsContainerState": _channel(
            "nats",
            "$KV.{bucket}.{host}.{engine}.{namespace}.{container}",
            "The current state, in a key-value bucket: the running containers.",
            {
                "bucket": "Setting kv_bucket.name of the sink.",
                "host": f"Name of the node. {_ENCODING}",
                "engine": f"Id of the containerd. {_ENCODING}",
                "namespace": f"containerd's namespace. {_ENCODING}",
                "container": f"containerd's id of the container. {_ENCODING}",
            },
            {"stateEntry": _state_message()},
        ),
        "natsSourceState": _channel(
            "nats",
            "$KV.{bucket}.{host}.{engine}",
            "The current state, in a key-value bucket: the last snapshot of each source.",
            {
                "bucket": "Setting kv_bucket.name of the sink.",
                "host": f"Name of the node. {_ENCODING}",
                "engine": f"Id of the containerd. {_ENCODING}",
            },
            {"stateEntry": _state_message()},
        ),
    }
    return {
        "asyncapi": "3.0.0",
        "id": "urn:whalebridge",
        "info": {
            "title": "whalebridge",
            "version": str(VERSION),
            "description": "Lifecycle events of containers. The version is the major version of the records, which "
            "only grow within it: ignore types and fields that you do not know.",
        },
        "defaultContentType": JSON_CONTENT_TYPE,
        "servers": {
            broker: {
                "host": "{host}",
                "protocol": broker,
                "variables": {"host": {"description": "Host and port of a server.", "default": f"localhost:{port}"}},
            }
            for broker, port in (("kafka", 9092), ("nats", 4222))
        },
        "channels": channels,
        "operations": {
            f"send{channel[0].upper()}{channel[1:]}": {"action": "send", "channel": {"$ref": f"#/channels/{channel}"}}
            for channel in channels
        },
        "components": {
            "schemas": schemas,
            "messageTraits": {
                "kafka": {
                    "headers": _attributes(
                        "ce_",
                        {
                            "content-type": ("Media type of the value.", JSON_CONTENT_TYPE),
                            f"ce_{PARTITION_KEY}": _PARTITION_KEY,
                        },
                    ),
                    "bindings": _kafka_key(_SOURCE_KEY),
                },
                "nats": {
                    "headers": _attributes(
                        "ce-", _MESSAGE_ID | {"ce-datacontenttype": ("Media type of the payload.", JSON_CONTENT_TYPE)}
                    ),
                },
            },
        },
    }


def _channel(broker: str, address: str, description: str, parameters: dict[str, str], messages: Document) -> Document:
    return {
        "servers": [{"$ref": f"#/servers/{broker}"}],
        "address": address,
        "description": description,
        "parameters": {name: {"description": text} for name, text in parameters.items()},
        "messages": messages,
    }


def _record_messages(broker: str) -> Document:
    """Return a message for each type of record, and the envelope of structured mode."""
    messages: Document = {
        type_: {
            "name": event_type(type_),
            "title": type_,
            "summary": summary,
            "contentType": JSON_CONTENT_TYPE,
            "payload": {"$ref": _SCHEMAS.format(name=type_)},
            "traits": [{"$ref": f"#/components/messageTraits/{broker}"}],
        }
        for type_, summary in RECORD_TYPES.items()
    }
    kafka = broker == "kafka"
    content_type = KAFKA_ENVELOPE_CONTENT_TYPE if kafka else NATS_ENVELOPE_CONTENT_TYPE
    media_type = ("Media type of the envelope.", content_type)
    messages["cloudEvent"] = {
        "name": "cloudEvent",
        "title": "CloudEvents envelope",
        "summary": "Any record, with cloudevents: structured.",
        "contentType": content_type,
        "headers": _strings({"content-type": media_type} if kafka else _MESSAGE_ID | {"Content-Type": media_type}),
        "payload": {"$ref": _SCHEMAS.format(name="cloudEvent")},
    }
    if kafka:
        messages["cloudEvent"]["bindings"] = _kafka_key(_SOURCE_KEY)
    return messages


def _state_message() -> Document:
    return {
        "name": "stateEntry",
        "title": "Entry of the current state",
        "contentType": JSON_CONTENT_TYPE,
        "payload": {"$ref": _SCHEMAS.format(name="stateEntry")},
    }


def _kafka_key(description: str) -> Document:
    return {"kafka": {"key": {"type": "string", "description": description}, "bindingVersion": "0.5.0"}}


def _attributes(prefix: str, others: _Fields) -> Document:
    """Return the schema of an object with the CloudEvents attributes, and others that every such object has."""
    schema = _strings(others | {f"{prefix}{name}": text for name, text in _ATTRIBUTES.items()})
    schema["required"].remove(f"{prefix}subject")
    return schema | {"description": "A CloudEvent. Each attribute of the record is an attribute here, too."}


def _strings(fields: _Fields) -> Document:
    return {
        "type": "object",
        "required": [*fields],
        "properties": {
            name: {"type": "string", "description": text, "examples": [example]}
            for name, (text, example) in fields.items()
        },
    }
