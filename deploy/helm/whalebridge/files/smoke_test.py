"""Check that events arrive: the bridge lists this pod, and every sink has acknowledged its records."""

import http.client
import json
import os
import socket
import sys
import time

SECONDS = 90
SOCKET = "/var/lib/whalebridge/control.sock"


def get(path):
    """Request a JSON document from the bridge on this node."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(10)
    connection.sock.connect(SOCKET)
    connection.request("GET", path)
    return json.load(connection.getresponse())


def unknown():
    """Return an error if this pod is not among the running containers."""
    projects = get("/containers")["projects"].values()
    pods = {(container["pod"] or {}).get("name") for each in projects for container in each}
    return "" if os.environ["POD"] in pods else "the bridge on this node does not list this pod"


def unacknowledged(since):
    """Return an error if a sink has undelivered records that are older than ``since``."""
    age = time.monotonic() - since
    late = [
        sink for sink in get("/readyz")["sinks"] if sink["backlog_records"] and sink["oldest_record_age_seconds"] >= age
    ]
    return f"not acknowledged by {json.dumps(late)}" if late else ""


def wait(check):
    """Poll until ``check`` returns no error; exit with the error at the deadline."""
    while True:
        try:
            error = check()
        except OSError as caught:
            error = f"no response from the bridge on this node at {SOCKET}: {caught}"
        if not error:
            return
        if time.monotonic() > deadline:
            sys.exit(error)
        time.sleep(0.5)


deadline = time.monotonic() + SECONDS
wait(unknown)
print("the bridge on this node lists this pod", flush=True)
known = time.monotonic()
wait(lambda: unacknowledged(known))
print("every sink has acknowledged the records", flush=True)
