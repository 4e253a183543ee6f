"""Where secrets are put: a containerd with containers full of them, and brokers that ask for them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.certificates import Authority
from tests.integration.canaries import Canaries, files
from tests.integration.kafka_sinks import FreshKafka
from tests.integration.nats_reading import FreshNats
from tests.testbed import image, nats_auth
from tests.testbed.containerd import Containerd, busybox
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_config import unsecured_jwt
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import Key, Operator

SECRET_KEYS = (
    "db_password", "DB_PASSWORD", "mysql.passwd", "pass", "smtp.pass", "PGPWD", "gpg-passphrase",
    "traefik.http.middlewares.a.basicauth.users", "client_secret", "my.app/Secret", "API_TOKEN", "tokens",
    "credentials", "api-key", "API_KEY", "apikey", "aws.access_key_id", "accessKey", "minio.accesskey",
    "private-key", "privateKey",
)  # fmt: skip
LEFT_OUT_KEYS = (
    "nerdctl/log-config", "nerdctl/environment", "containerd.io/restart.loguri", "org.opencontainers.image.url",
    "org.label-schema.vcs-url", "maintainer", "io.containerd.image.config.stop-signal",
)  # fmt: skip
USER = "bridge"


class World:
    """A containerd with containers full of secrets; labels whose values may be told are in `told`."""

    def __init__(self, engine: Containerd, canaries: Canaries, folder: Path) -> None:
        self.engine, self.canaries = engine, canaries
        self.namespace = f"canaries{os.getpid()}"
        self.told = [f"told{name}{os.getpid()}" for name in ("before", "pod", "image", "live")]
        self._folder = folder
        self._image = "docker.io/library/canaries:latest"
        self._import()

    def _import(self) -> None:
        put = self.canaries.new
        secret = {"maintainer": put("image label maintainer"), "build.token": put("image label token")}
        archive = self._folder / "image.tar"
        environment = [f"BUILT_WITH={put('environment of the image')}"]
        labels = secret | {"flavour": self.told[2]}
        archive.write_bytes(image.oci_archive(busybox(), self._image, labels=labels, environment=environment))
        for namespace in (self.namespace, "k8s.io"):
            self.engine.ctr("images", "import", str(archive), namespace=namespace)

    def before(self) -> None:
        """Containers that are there before the bridge is."""
        put, id_ = self.canaries.new, f"before-{self.namespace}"
        labels = {key: put(f"label {key}") for key in (*SECRET_KEYS, *LEFT_OUT_KEYS)} | {"tier": self.told[0]}
        self._ctr(
            "run", "--detach", "--null-io", *_flags("--label", labels),
            f"--env=DB_PASSWORD={put('environment by ctr')}", f"--annotation=note={put('annotation by ctr')}",
            self._image, id_, "sh", "-c", f"sleep 600 # {put('argument of a process')}",
        )  # fmt: skip
        kubernetes = {"io.kubernetes.pod.name": "shop", "io.kubernetes.pod.namespace": "sales"}
        kubernetes["io.kubernetes.pod.uid"] = "0e8f3b52-1d8f-4a38-a0b5-4b6f6e9d7c11"
        for kind in ("sandbox", "container"):
            labels = {**kubernetes, "io.cri-containerd.kind": kind, "app-token": put(f"label of a {kind}")}
            labels |= {"app": self.told[1]} if kind == "sandbox" else {"io.kubernetes.container.name": "web"}
            name = f"{kind}-{self.namespace}"
            self.engine.ctr(
                "run", "--detach", "--null-io", *_flags("--label", labels), self._image, name, "sleep", "86400",
                namespace="k8s.io",
            )  # fmt: skip

    def live(self) -> None:
        """What happens while the bridge looks on: nerdctl's ways, an exec, a new label, pauses and an end."""
        put, name = self.canaries.new, f"live-{self.namespace}"
        variables, labels = self._folder / "variables", self._folder / "labels"
        variables.write_text(f"SESSION={put('environment from a file')}\n")
        labels.write_text(f"service.secret={put('label from a file')}\n")
        self._nerdctl(
            "run", "-d", "--pull=never", "--net=host", f"--name={name}", f"--label=tier={self.told[3]}",
            f"--env=URL=https://user:{put('URL in the environment')}@host/", f"--env-file={variables}",
            f"--label-file={labels}", f"--annotation=x.y={put('annotation by nerdctl')}",
            f"--add-host={put('nerdctl/extraHosts')}:1.2.3.4", f"--volume=/tmp:/{put('nerdctl/mounts')}",
            "--log-driver=json-file", f"--log-opt=tag={put('option of a log driver')}", "--restart=always",
            self._image, "sh", "-c", f"sleep 600 # {put('argument by nerdctl')}",
        )  # fmt: skip
        self._nerdctl(
            "exec", f"--env=KEY={put('environment of an exec')}", name,
            "sh", "-c", f"true {put('argument of an exec')}",
        )  # fmt: skip
        before = f"before-{self.namespace}"
        self._ctr("containers", "label", before, f"new.password={put('label that came later')}")
        self._ctr("tasks", "pause", before)
        self._ctr("tasks", "resume", before)

    def end(self) -> None:
        """Let some go, so that exits are told; `clear` removes the rest."""
        self._ctr("tasks", "kill", "--signal", "SIGKILL", f"before-{self.namespace}")

    def clear(self) -> None:
        for namespace in (self.namespace, "k8s.io"):
            for id_ in self.engine.ctr("containers", "ls", "-q", namespace=namespace).stdout.split():
                if namespace == self.namespace or id_.endswith(self.namespace):
                    self.engine.ctr("tasks", "delete", "--force", id_, namespace=namespace, check=False)
                    self.engine.ctr("containers", "delete", id_, namespace=namespace, check=False)

    def _ctr(self, *arguments: str) -> None:
        self.engine.ctr(*arguments, namespace=self.namespace)

    def _nerdctl(self, *arguments: str) -> None:
        self.engine.nerdctl(*arguments, namespace=self.namespace)


def _flags(name: str, values: Mapping[str, str]) -> list[str]:
    return [f"{name}={key}={value}" for key, value in values.items()]


@dataclasses.dataclass
class Brokers:
    """A Kafka that asks for a password, NATS servers that each ask for something else, and the sinks for all of them.

    `good` sinks (by id) get records, `bad` ones have a wrong secret; `environment` has what is not in the file.
    """

    kafka: Kafka
    nats: list[Nats]
    good: dict[str, dict[str, Any]]
    bad: dict[str, dict[str, Any]]
    environment: dict[str, str]

    def topics(self) -> dict[str, bytes]:
        """All that plain consumers find in Kafka."""
        return {
            topic: b"\n".join(
                b" ".join([each.key or b"", each.value or b"", *(k.encode() + b"=" + v for k, v in each.headers)])
                for each in self.kafka.admin.records(topic)
            )
            for topic in self.kafka.admin.topics()
        }

    def streams(self) -> dict[str, bytes]:
        """All that the NATS servers have on disk, once they are stopped: streams and the bucket."""
        return {
            f"{each.directory.name}/{name}": content
            for each in self.nats
            for name, content in files(each.nodes[0].folder / "jetstream").items()
            if name.endswith(".blk")
        }


def _nats_sink(peer: Nats, subject: str, **more: Any) -> dict[str, dict[str, Any]]:
    server = peer.urls[0].partition("//")[2]
    return {subject: {"type": "nats", "servers": [server], "subject_prefix": subject, "timeout": "20s", **more}}


def all_brokers(
    world: World, fresh_kafka: FreshKafka, fresh_nats: FreshNats, authority: Authority, tmp_path: Path
) -> Brokers:
    """Start them, with secrets of their own."""
    put = world.canaries.new
    password = put("password of Kafka")
    key_password, token, nats_password = put("password of a key"), put("token of NATS"), put("password of NATS")
    jwt = world.canaries.adopt("token of oauthbearer", unsecured_jwt(USER))
    key, operator, ours = Key.new(), Operator(), authority.issue(USER, password=key_password)
    world.canaries.adopt("seed of an nkey", key.seed)
    creds = operator.creds(tmp_path / "user.creds")
    for number, line in enumerate(line for line in creds.read_text().splitlines() if line and "---" not in line):
        world.canaries.adopt(f"credentials {number}", line)

    def file(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    kafka = fresh_kafka(listeners=("sasl_plaintext", "sasl_ssl"), users={USER: password}, authority=authority)
    kafka.admin.create_topic("narrow", settings={"max.message.bytes": "1500"})
    servers = [fresh_nats(login=nats_auth.users({USER: nats_password})), fresh_nats(login=nats_auth.token(token))]
    servers += [fresh_nats(login=nats_auth.nkey(key)), fresh_nats(login=operator.config())]

    def sink(topic: str, listener: Any = "sasl_plaintext", **auth: Any) -> dict[str, dict[str, Any]]:
        more: dict[str, Any] = {name: auth.pop(name) for name in ("tls", "state_topic") if name in auth}
        auth = {"mechanism": "plain", **({} if "token_file" in auth else {"username": USER}), **auth}
        settings = {"type": "kafka", "bootstrap_servers": [kafka.bootstrap_of(listener)], "topic": topic, "auth": auth}
        return {topic: {**settings, "request_timeout": "20s", **more}}

    tls = {"enabled": True, "ca_file": str(authority.certificate), "cert_file": str(ours.certificate)}
    tls |= {"key_file": str(ours.key), "key_password": key_password}
    good = {
        **sink("inline", "sasl_ssl", mechanism="scram-sha-512", password=password, tls=tls, state_topic="rows"),
        **sink("by-environment"),
        **sink("narrow", password_file=file("password", f"{password}\n")),
        **sink("by-token", mechanism="oauthbearer", token_file=file("jwt", jwt)),
        **_nats_sink(servers[0], "user", auth={"user": USER, "password": nats_password}, kv_bucket={"name": "rows"}),
        **_nats_sink(servers[1], "token", auth={"token_file": file("token", token)}),
        **_nats_sink(servers[2], "nkey", auth={"nkey_seed": key.seed}, cloudevents="structured"),
        **_nats_sink(servers[3], "creds", auth={"creds_file": str(creds)}),
        "file": {"type": "file", "path": str(tmp_path / "events.jsonl"), "heartbeats": True},
    }
    wrong_jwt = file("wrong-jwt", put("wrong token of oauthbearer"))
    wrong_tls = tls | {"key_password": put("wrong password of a key")}
    bad = {
        **sink("wrong-token", mechanism="oauthbearer", token_file=wrong_jwt),
        **sink("wrong-key", "sasl_ssl", password=password, tls=wrong_tls),
        **_nats_sink(servers[0], "wrong-user", auth={"user": USER, "password": put("wrong password of NATS")}),
        **_nats_sink(servers[1], "wrong-nats-token", auth={"token": put("wrong token of NATS")}),
        **_nats_sink(servers[2], "wrong-seed", auth={"nkey_seed": put("no seed of an nkey")}),
        **_nats_sink(servers[2], "other-seed", auth={"nkey_seed": world.canaries.adopt("other seed", Key.new().seed)}),
        **_nats_sink(servers[3], "wrong-creds", auth={"creds_file": file("wrong.creds", put("no credentials"))}),
    }
    for mechanism in ("plain", "scram-sha-256", "scram-sha-512"):
        bad |= sink(f"wrong-{mechanism}", mechanism=mechanism, password=put(f"wrong password for {mechanism}"))
    for settings in bad.values():  # the good ones have all the time that they may need
        settings["request_timeout" if settings["type"] == "kafka" else "timeout"] = "5s"
    return Brokers(kafka, servers, good, bad, {"WHALEBRIDGE_SINKS__BY-ENVIRONMENT__AUTH__PASSWORD": password})
