"""The AsyncAPI document agrees with the messages that the sinks publish."""

from __future__ import annotations

import re
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from bridge.cli.asyncapi import asyncapi_document
from bridge.core.record_encoder import heartbeat_record
from bridge.core.records import Record, RecordType
from config.sinks import NatsSettings
from sinks import cloudevents, state_table
from sinks.kafka import messages as kafka
from sinks.nats.messages import MessageEncoder, state_key
from sinks.state_table import StateKey
from tests.sample_records import control_record, loss_record, record, retirement

DOCUMENT = asyncapi_document()
CHANNELS = DOCUMENT["channels"]
RECORDS = [
    *(record(1, type_) for type_ in ("started", "exited", "paused", "unpaused", "present")),
    *(record(1, type_) for type_ in ("created", "deleted", "oom", "renamed")),
    control_record(1, "snapshot_started"),
    control_record(2, "snapshot_completed"),
    loss_record(record(9), 3),
    heartbeat_record(record(9), 1, 1, 60.0),
    retirement(record(9)),
]


def is_valid(document: Any, schema: dict[str, Any]) -> bool:
    """Return whether a document is valid under a schema of the AsyncAPI document, whose dialect is draft 7."""
    whole = {"components": DOCUMENT["components"], "allOf": [schema]}
    jsonschema.Draft7Validator.check_schema(whole)
    return jsonschema.Draft7Validator(whole).is_valid(document)


def message_of(channel: str, sent: Record) -> dict[str, Any]:
    message: dict[str, Any] = CHANNELS[channel]["messages"][sent.type]
    assert message["name"] == cloudevents.event_type(sent.type)
    return message


def trait(message: dict[str, Any]) -> dict[str, Any]:
    (reference,) = message["traits"]
    name: str = reference["$ref"].removeprefix("#/components/messageTraits/")
    found: dict[str, Any] = DOCUMENT["components"]["messageTraits"][name]
    return found


def address_pattern(channel: str) -> str:
    """Return a regular expression of the addresses of a channel, whose parameters are all described."""
    address = CHANNELS[channel]["address"]
    assert set(re.findall(r"{(\w+)}", address)) == set(CHANNELS[channel]["parameters"])
    return re.sub(r"\\{\w+\\}", "[^.]+", re.escape(address))


def test_samples_have_all_record_types() -> None:
    assert {each.type for each in RECORDS} == set(get_args(RecordType))
    for channel in ("kafkaRecords", "natsRecords"):
        assert set(CHANNELS[channel]["messages"]) == {*get_args(RecordType), "cloudEvent"}


@pytest.mark.parametrize("sent", RECORDS, ids=lambda each: each.type)
def test_payload_is_valid_for_its_message_only(sent: Record) -> None:
    document = msgspec.json.decode(sent.data)
    for channel in ("kafkaRecords", "natsRecords"):
        assert is_valid(document, message_of(channel, sent)["payload"])
        others = [each for name, each in CHANNELS[channel]["messages"].items() if name != sent.type]
        assert not [each["name"] for each in others if is_valid(document, each["payload"])]


@pytest.mark.parametrize("sent", RECORDS, ids=lambda each: each.type)
def test_headers_are_those_of_the_sinks(sent: Record) -> None:
    subject = {"ce_subject", "ce-subject"}
    settings = NatsSettings(type="nats", servers=("n",), subject_prefix="events")
    nats_message = MessageEncoder(settings).encode(sent)
    assert nats_message is not None
    source = StateKey(sent.host, sent.engine)
    (kafka_message,) = kafka.event_messages(source, [sent], "json", "binary")
    sent_headers = {
        "kafkaRecords": {name: value.decode() for name, value in kafka_message.headers},
        "natsRecords": nats_message.headers,
    }
    for channel, headers in sent_headers.items():
        schema = trait(message_of(channel, sent))["headers"]
        assert is_valid(headers, schema)
        assert set(schema["properties"]) - subject == set(schema["required"]) == set(headers) - subject
        assert (subject & set(headers) != set()) == bool(sent.subject)
    assert re.fullmatch(address_pattern("natsRecords"), nats_message.subject)


@pytest.mark.parametrize("sent", RECORDS, ids=lambda each: each.type)
def test_envelope_is_valid_for_both_brokers(sent: Record) -> None:
    settings = NatsSettings(type="nats", servers=("n",), subject_prefix="events", cloudevents="structured")
    nats_message = MessageEncoder(settings).encode(sent)
    assert nats_message is not None
    source = StateKey(sent.host, sent.engine)
    (kafka_message,) = kafka.event_messages(source, [sent], "json", "structured")
    envelope = msgspec.json.decode(nats_message.data)
    assert msgspec.json.decode(kafka_message.value or b"") == envelope | {"partitionkey": kafka_message.key.decode()}
    kafka_headers = {name: value.decode() for name, value in cloudevents.kafka_envelope_headers()}
    for channel, name, headers in (
        ("kafkaRecords", "content-type", kafka_headers),
        ("natsRecords", "Content-Type", nats_message.headers),
    ):
        message = CHANNELS[channel]["messages"]["cloudEvent"]
        assert is_valid(envelope, message["payload"])
        assert is_valid(headers, message["headers"])
        assert set(message["headers"]["required"]) == set(headers)
        assert message["contentType"] == headers[name]
        assert not is_valid({key: value for key, value in envelope.items() if key != "id"}, message["payload"])


def test_state_entries_are_valid_and_records_are_not() -> None:
    records = [control_record(1, "snapshot_started"), record(2, "present"), control_record(3, "snapshot_completed")]
    _, changes = state_table.apply_records(state_table.TableState(), records)
    schema = CHANNELS["kafkaState"]["messages"]["stateEntry"]["payload"]
    values = [msgspec.json.decode(change.value or b"") for change in changes]
    assert [each["type"] for each in values] == ["present", "snapshot_completed"]
    assert all(is_valid(each, schema) for each in values)
    assert not any(is_valid(msgspec.json.decode(each.data), schema) for each in records)
    keys = [f"$KV.state.{state_key(*change.key)}" for change in changes]
    for channel, key in zip(("natsContainerState", "natsSourceState"), keys, strict=True):
        assert re.fullmatch(address_pattern(channel), key)


def test_only_kafka_messages_have_a_key() -> None:
    for channel in CHANNELS.values():
        (server,) = [each["$ref"].removeprefix("#/servers/") for each in channel["servers"]]
        for message in channel["messages"].values():
            bindings = message if "traits" not in message else trait(message)
            assert set(bindings.get("bindings", {})) == ({"kafka"} if server == "kafka" else set())
    assert kafka.encode_key(state_table.source_key(RECORDS[0])) == b"node-1/c79d280c-f53d-4d5e"  # as described
