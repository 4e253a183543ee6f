"""The minimum permissions of the NATS sink, and errors for missing ones; test_nats_docs has the documented lists."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.core.errors import TransientError
from sinks.nats.sink import NatsSink
from tests.integration.nats_reading import NatsFactory, settings
from tests.integration.target_checks import publish_until_accepted
from tests.integration.test_nats_auth import SECRET, check_publish, publish_error
from tests.naming import assert_names, raises_naming
from tests.sample_records import records
from tests.testbed import nats_auth
from tests.testbed.nats_auth import Permissions

SINK = Permissions(
    publish=["events.>", "$JS.API.STREAM.INFO.WHALEBRIDGE_EVENTS", "$JS.API.STREAM.CREATE.WHALEBRIDGE_EVENTS"],
    subscribe=["_INBOX.>"],
)


@pytest.mark.parametrize("create", [True, False])
async def test_nats_sink_works_with_minimum_permissions(nats_factory: NatsFactory, create: bool) -> None:
    auth = nats_auth.users_config({"bridge": SECRET, "admin": SECRET}, {"bridge": SINK})
    peer = nats_factory(auth=auth)
    if not create:
        await check_publish(peer, auth={"user": "admin", "password": SECRET})
    await check_publish(peer, auth={"user": "bridge", "password": SECRET}, stream={"auto_create": create})


@pytest.mark.parametrize(
    ("missing", "denied_action"),
    [
        ("events.>", r'publish to "events.node-1.shop.started"'),
        ("$JS.API.STREAM.INFO.WHALEBRIDGE_EVENTS", r'publish to "$js.api.stream.info.whalebridge_events"'),
        ("$JS.API.STREAM.CREATE.WHALEBRIDGE_EVENTS", r'publish to "$js.api.stream.create.whalebridge_events"'),
        ("_INBOX.>", r'subscription to "_inbox.'),
    ],
)
async def test_nats_sink_reports_missing_permission(
    nats_factory: NatsFactory, missing: str, denied_action: str
) -> None:
    def without(subjects: Any) -> list[str]:
        return [subject for subject in subjects if subject != missing] or ["nothing"]

    allowed = Permissions(publish=without(SINK.publish), subscribe=without(SINK.subscribe))
    peer = nats_factory(auth=nats_auth.users_config({"bridge": SECRET}, {"bridge": allowed}))
    text = await publish_error(peer, auth={"user": "bridge", "password": SECRET})
    assert_names(text, f"permissions violation for {denied_action}", "docs/nats.md")


async def test_nats_sink_uses_permission_granted_later(nats_factory: NatsFactory) -> None:
    def users(permissions: Permissions) -> str:
        return nats_auth.users_config({"bridge": SECRET}, {"bridge": permissions})

    allowed = Permissions(publish=["$JS.API.>"], subscribe=["_INBOX.>"])
    peer = nats_factory(auth=users(allowed))
    sink = NatsSink(settings(peer, auth={"user": "bridge", "password": SECRET}))
    await sink.start()
    with raises_naming(TransientError, "permissions violation"):
        await sink.publish(records(3))
    config = peer.nodes[0].directory / "nats.conf"
    config.write_text(config.read_text().replace(users(allowed), users(SINK)))
    await asyncio.to_thread(peer.stop)
    await asyncio.to_thread(peer.start)
    await publish_until_accepted(sink, records(3))
    await sink.close()


async def test_nats_sink_uses_configured_inbox_prefix(nats_factory: NatsFactory) -> None:
    allowed = Permissions(publish=SINK.publish, subscribe=["_INBOX.whalebridge.>"])
    peer = nats_factory(auth=nats_auth.users_config({"bridge": SECRET}, {"bridge": allowed}))
    auth = {"user": "bridge", "password": SECRET}
    await check_publish(peer, auth=auth, inbox_prefix="_INBOX.whalebridge")
    assert "_inbox." in await publish_error(peer, auth=auth)
