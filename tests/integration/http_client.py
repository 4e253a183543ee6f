"""Send requests to the HTTP endpoint of a running bridge."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.bridge_process import BridgeProcess
from tests.naming import assert_names

LOCAL = {"WHALEBRIDGE_HTTP__LISTEN": "127.0.0.1:0"}
"""Environment of a bridge that serves HTTP on a free port."""


class Response(NamedTuple):
    status: int
    text: str

    @property
    def document(self) -> Any:
        return json.loads(self.text)


class HttpClient:
    """Send requests to a running bridge over TCP."""

    def __init__(self, bridge: BridgeProcess) -> None:
        (line,) = bridge.wait_logged("http_listening")
        self.url = f"http://{line['listen'][0]}"

    def get(self, path: str, method: str = "GET", **headers: str) -> Response:
        request = urllib.request.Request(self.url + path, method=method, headers=headers)  # noqa: S310 (a local URL)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
                return Response(response.status, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, error.read().decode())

    def ready(self) -> bool:
        return self.get("/readyz").status == http.client.OK

    def metrics(self) -> dict[str, float]:
        return {
            sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
        }


def assert_not_ready(client: HttpClient, *named: object) -> None:
    """Assert that the bridge responds, is not ready, and names the cause."""
    assert client.get("/livez").status == http.client.OK
    response = client.get("/readyz")
    assert response.status == http.client.SERVICE_UNAVAILABLE
    assert_names(response.document["reasons"][0], "the outbox", *named)
    metrics = client.metrics()
    assert (metrics["whalebridge_ready"], metrics["whalebridge_outbox_writable"]) == (0, 0)
    assert client.get("/").status == client.get("/containers").status == http.client.OK
