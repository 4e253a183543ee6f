"""The permissions, commands and messages in docs/kafka.md."""

from __future__ import annotations

import http.server
import json
import re
import shlex
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from bridge.core.errors import TransientError
from tests.integration.kafka_sinks import KafkaFactory, kcat, open_sink, record_data
from tests.naming import raises_naming
from tests.sample_records import control_record, records
from tests.testbed.kafka import USERS, Kafka
from tests.testbed.kafka_admin import Operation
from tests.testbed.kafka_config import unsecured_jwt

PAGE = (Path(__file__).parents[2] / "docs" / "kafka.md").read_text()


def commands(program: str) -> list[list[str]]:
    """Return the words of each command of a program on the page."""
    return [shlex.split(line) for line in re.findall(rf"^{program} .*$", PAGE, re.MULTILINE)]


def option_values(words: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


def snake_case(operation: str) -> Operation:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()
    return next(each for each in get_args(Operation) if each == name)


class TokenEndpoint(http.server.BaseHTTPRequestHandler):
    """An OIDC provider with one client."""

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        expected = "grant_type=client_credentials&client_id=whalebridge&client_secret=s3cret&scope=kafka"
        self.send_response(200 if form == expected else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"access_token": unsecured_jwt("bridge"), "token_type": "Bearer"}).encode())


async def test_documented_oidc_script_returns_usable_token(kafka: Kafka, tmp_path: Path) -> None:
    script, secret = tmp_path / "oidc_token.py", tmp_path / "client_secret"
    [text] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    secret.write_text("s3cret\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), TokenEndpoint) as server:
        url = f"http://127.0.0.1:{server.server_port}/token"
        for documented, own in (("https://login.example.com/oauth2/token", url), ("/etc/whalebridge", str(tmp_path))):
            assert documented in text
            text = text.replace(documented, own)
        script.write_text(text)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        auth = {"mechanism": "oauthbearer", "token_command": [sys.executable, str(script)]}
        bootstrap = kafka.bootstrap_for("sasl_plaintext")
        async with open_sink(bootstrap, "oidc", auth=auth) as sink:
            await sink.publish(records(1))
        secret.write_text("wrong\n")
        with raises_naming(TransientError, "auth.token_command", "HTTP Error 401"):
            async with open_sink(bootstrap, "oidc", auth=auth):
                pass
        server.shutdown()
    assert len(kafka.admin.records("oidc")) == 1


async def test_documented_kafka_permissions_and_commands_work(kafka_factory: KafkaFactory) -> None:
    """Those for records suffice for records; the others are needed for the state topic, too."""
    kafka = kafka_factory(listeners=("sasl_plaintext",), acls=True)
    records_command, state_command = commands("kafka-acls.sh")
    assert option_values(state_command, "--topic") == ["containers.state"]
    assert f"| topic `containers.state` | {', '.join(option_values(state_command, '--operation'))} |" in PAGE
    auth = {"mechanism": "scram-sha-512", "username": "bridge", "password": USERS["bridge"]}
    all_records = [
        control_record(1, "snapshot_started"),
        *records(3, first_sequence=2),
        control_record(5, "snapshot_completed"),
    ]
    options: dict[str, Any] = {"auth": auth}
    for count, words in enumerate((records_command, state_command), start=1):
        for operation in option_values(words, "--operation"):
            (principal,), (topic,) = option_values(words, "--allow-principal"), option_values(words, "--topic")
            kafka.admin.allow(principal, snake_case(operation), topic)
        async with open_sink(kafka.bootstrap_for("sasl_plaintext"), "containers", **options) as sink:
            await sink.publish(all_records)
        assert [each.value for each in kafka.admin.records("containers")] == count * record_data(all_records)
        options["state_topic"] = "containers.state"
    assert len(kafka.admin.records("containers.state")) == 4
    ((_, *words),) = commands("kcat")
    words[words.index("-b") + 1] = kafka.bootstrap
    output = kcat(*words, "-e", "-q")
    assert output.startswith("node-1/c79d280c-f53d-4d5e content-type=application/json,ce_specversion=1.0,")
    assert output.splitlines()[1::2] == [each.decode() for each in count * record_data(all_records)]
