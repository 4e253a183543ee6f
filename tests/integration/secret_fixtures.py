"""Places for secrets: containers with secrets everywhere, and brokers that require credentials."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.certificates import Authority
from tests.integration.canaries import Canaries, read_files
from tests.integration.kafka_sinks import KafkaFactory
from tests.integration.nats_reading import NatsFactory
from tests.testbed import image, nats_auth
from tests.testbed.containerd import Containerd, busybox_path
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
EXCLUDED_KEYS = (
    "nerdctl/log-config", "nerdctl/environment", "containerd.io/restart.loguri", "org.opencontainers.image.url",
    "org.label-schema.vcs-url", "maintainer", "io.containerd.image.config.stop-signal",
)  # fmt: skip
USER = "bridge"


class SecretContainers:
    """Containers with secrets everywhere; `published_labels` are the label values that may be published."""

    def __init__(self, engine: Containerd, canaries: Canaries, directory: Path) -> None:
        self.engine, self.canaries = engine, canaries
        self.namespace = f"canaries{os.getpid()}"
        self.published_labels = [f"published{name}{os.getpid()}" for name in ("before", "pod", "image", "live")]
        self._directory = directory
        self._image = "docker.io/library/canaries:latest"
        self._import()

    def _import(self) -> None:
        new_secret = self.canaries.new
        secret = {"maintainer": new_secret("image label maintainer"), "build.token": new_secret("image label token")}
        archive = self._directory / "image.tar"
        environment = [f"BUILT_WITH={new_secret('environment of the image')}"]
        labels = secret | {"flavor": self.published_labels[2]}
        archive.write_bytes(image.oci_archive(busybox_path(), self._image, labels=labels, environment=environment))
        for namespace in (self.namespace, "k8s.io"):
            self.engine.ctr("images", "import", str(archive), namespace=namespace)

    def create_existing(self) -> None:
        """Create containers before the bridge starts."""
        new_secret, id_ = self.canaries.new, f"before-{self.namespace}"
        labels = {key: new_secret(f"label {key}") for key in (*SECRET_KEYS, *EXCLUDED_KEYS)} | {
            "tier": self.published_labels[0]
        }
        self._ctr(
            "run", "--detach", "--null-io", *_repeat_flag("--label", labels),
            f"--env=DB_PASSWORD={new_secret('environment by ctr')}",
            f"--annotation=note={new_secret('annotation by ctr')}",
            self._image, id_, "sh", "-c", f"sleep 600 # {new_secret('argument of a process')}",
        )  # fmt: skip
        kubernetes = {"io.kubernetes.pod.name": "shop", "io.kubernetes.pod.namespace": "sales"}
        kubernetes["io.kubernetes.pod.uid"] = "0e8f3b52-1d8f-4a38-a0b5-4b6f6e9d7c11"
        for kind in ("sandbox", "container"):
            labels = {**kubernetes, "io.cri-containerd.kind": kind, "app-token": new_secret(f"label of a {kind}")}
            labels |= (
                {"app": self.published_labels[1]} if kind == "sandbox" else {"io.kubernetes.container.name": "web"}
            )
            name = f"{kind}-{self.namespace}"
            self.engine.ctr(
                "run", "--detach", "--null-io", *_repeat_flag("--label", labels), self._image, name, "sleep", "86400",
                namespace="k8s.io",
            )  # fmt: skip

    def create_while_running(self) -> None:
        """Act while the bridge runs: nerdctl's options, an exec, a new label, a pause and a resume."""
        new_secret, name = self.canaries.new, f"live-{self.namespace}"
        variables, labels = self._directory / "variables", self._directory / "labels"
        variables.write_text(f"SESSION={new_secret('environment from a file')}\n")
        labels.write_text(f"service.secret={new_secret('label from a file')}\n")
        self._nerdctl(
            "run", "-d", "--pull=never", "--net=host", f"--name={name}", f"--label=tier={self.published_labels[3]}",
            f"--env=URL=https://user:{new_secret('URL in the environment')}@host/", f"--env-file={variables}",
            f"--label-file={labels}", f"--annotation=x.y={new_secret('annotation by nerdctl')}",
            f"--add-host={new_secret('nerdctl/extraHosts')}:1.2.3.4", f"--volume=/tmp:/{new_secret('nerdctl/mounts')}",
            "--log-driver=json-file", f"--log-opt=tag={new_secret('option of a log driver')}", "--restart=always",
            self._image, "sh", "-c", f"sleep 600 # {new_secret('argument by nerdctl')}",
        )  # fmt: skip
        self._nerdctl(
            "exec", f"--env=KEY={new_secret('environment of an exec')}", name,
            "sh", "-c", f"true {new_secret('argument of an exec')}",
        )  # fmt: skip
        before = f"before-{self.namespace}"
        self._ctr("containers", "label", before, f"new.password={new_secret('label added later')}")
        self._ctr("tasks", "pause", before)
        self._ctr("tasks", "resume", before)

    def stop_some(self) -> None:
        """Stop a container, so that an exit is published; `remove_all` removes the rest."""
        self._ctr("tasks", "kill", "--signal", "SIGKILL", f"before-{self.namespace}")

    def remove_all(self) -> None:
        for namespace in (self.namespace, "k8s.io"):
            for id_ in self.engine.ctr("containers", "ls", "-q", namespace=namespace).stdout.split():
                if namespace == self.namespace or id_.endswith(self.namespace):
                    self.engine.ctr("tasks", "delete", "--force", id_, namespace=namespace, check=False)
                    self.engine.ctr("containers", "delete", id_, namespace=namespace, check=False)

    def _ctr(self, *arguments: str) -> None:
        self.engine.ctr(*arguments, namespace=self.namespace)

    def _nerdctl(self, *arguments: str) -> None:
        self.engine.nerdctl(*arguments, namespace=self.namespace)


def _repeat_flag(name: str, values: Mapping[str, str]) -> list[str]:
    return [f"{name}={key}={value}" for key, value in values.items()]


@dataclasses.dataclass
class SecretBrokers:
    """A Kafka with passwords, NATS servers with various credentials, and the sinks for all of them.

    `working_sinks` (by id) receive records, `failing_sinks` have a wrong secret; `environment` has the
    settings that are not in the file.
    """

    kafka: Kafka
    nats: list[Nats]
    working_sinks: dict[str, dict[str, Any]]
    failing_sinks: dict[str, dict[str, Any]]
    environment: dict[str, str]

    def topic_contents(self) -> dict[str, bytes]:
        """Return the contents of all topics, read by plain consumers."""
        return {
            topic: b"\n".join(
                b" ".join([each.key or b"", each.value or b"", *(k.encode() + b"=" + v for k, v in each.headers)])
                for each in self.kafka.admin.records(topic)
            )
            for topic in self.kafka.admin.topics()
        }

    def stream_contents(self) -> dict[str, bytes]:
        """Return the files of streams and buckets; the servers must be stopped."""
        return {
            f"{each.directory.name}/{name}": content
            for each in self.nats
            for name, content in read_files(each.nodes[0].directory / "jetstream").items()
            if name.endswith(".blk")
        }


def _nats_sink_settings(peer: Nats, subject: str, **more: Any) -> dict[str, dict[str, Any]]:
    server = peer.urls[0].partition("//")[2]
    return {subject: {"type": "nats", "servers": [server], "subject_prefix": subject, "timeout": "20s", **more}}


def start_brokers(
    secret_containers: SecretContainers,
    kafka_factory: KafkaFactory,
    nats_factory: NatsFactory,
    authority: Authority,
    tmp_path: Path,
) -> SecretBrokers:
    """Start the brokers, with new secrets."""
    new_secret = secret_containers.canaries.new
    password = new_secret("password of Kafka")
    key_password, token, nats_password = (
        new_secret("password of a key"),
        new_secret("token of NATS"),
        new_secret("password of NATS"),
    )
    jwt = secret_containers.canaries.adopt("token of oauthbearer", unsecured_jwt(USER))
    key, operator, client = Key.generate(), Operator(), authority.issue(USER, password=key_password)
    secret_containers.canaries.adopt("seed of an nkey", key.seed)
    creds = operator.write_creds(tmp_path / "user.creds")
    for number, line in enumerate(line for line in creds.read_text().splitlines() if line and "---" not in line):
        secret_containers.canaries.adopt(f"credentials {number}", line)

    def write_file(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    kafka = kafka_factory(listeners=("sasl_plaintext", "sasl_ssl"), users={USER: password}, authority=authority)
    kafka.admin.create_topic("narrow", settings={"max.message.bytes": "1500"})
    servers = [
        nats_factory(auth=nats_auth.users_config({USER: nats_password})),
        nats_factory(auth=nats_auth.token_config(token)),
    ]
    servers += [nats_factory(auth=nats_auth.nkey_config(key)), nats_factory(auth=operator.config())]

    def sink_settings(topic: str, listener: Any = "sasl_plaintext", **auth: Any) -> dict[str, dict[str, Any]]:
        more: dict[str, Any] = {name: auth.pop(name) for name in ("tls", "state_topic") if name in auth}
        auth = {"mechanism": "plain", **({} if auth.get("mechanism") == "oauthbearer" else {"username": USER}), **auth}
        settings = {"type": "kafka", "bootstrap_servers": [kafka.bootstrap_for(listener)], "topic": topic, "auth": auth}
        return {topic: {**settings, "request_timeout": "20s", **more}}

    tls = {"enabled": True, "ca_file": str(authority.certificate), "cert_file": str(client.certificate)}
    tls |= {"key_file": str(client.key), "key_password": key_password}
    working = {
        **sink_settings(
            "inline", "sasl_ssl", mechanism="scram-sha-512", password=password, tls=tls, state_topic="states"
        ),
        **sink_settings("by-environment"),
        **sink_settings("narrow", password_file=write_file("password", f"{password}\n")),
        **sink_settings("by-token", mechanism="oauthbearer", token_file=write_file("jwt", jwt)),
        **sink_settings("by-command", mechanism="oauthbearer", token_command=["/bin/cat", f"{tmp_path}/jwt"]),
        **_nats_sink_settings(
            servers[0], "user", auth={"user": USER, "password": nats_password}, kv_bucket={"name": "states"}
        ),
        **_nats_sink_settings(servers[1], "token", auth={"token_file": write_file("token", token)}),
        **_nats_sink_settings(servers[2], "nkey", auth={"nkey_seed": key.seed}, cloudevents="structured"),
        **_nats_sink_settings(servers[3], "creds", auth={"creds_file": str(creds)}),
        "file": {"type": "file", "path": str(tmp_path / "events.jsonl"), "heartbeats": True},
    }
    wrong_jwt = write_file("wrong-jwt", new_secret("wrong token of oauthbearer"))
    argument, output = new_secret("argument of a command"), new_secret("output of a command")
    command = f'echo {output}; echo "no token of $0, only {output}" >&2; exit 1'
    wrong_tls = tls | {"key_password": new_secret("wrong password of a key")}
    failing = {
        **sink_settings("wrong-token", mechanism="oauthbearer", token_file=wrong_jwt),
        **sink_settings("wrong-command", mechanism="oauthbearer", token_command=["/bin/sh", "-c", command, argument]),
        **sink_settings("wrong-key", "sasl_ssl", password=password, tls=wrong_tls),
        **_nats_sink_settings(
            servers[0], "wrong-user", auth={"user": USER, "password": new_secret("wrong password of NATS")}
        ),
        **_nats_sink_settings(servers[1], "wrong-nats-token", auth={"token": new_secret("wrong token of NATS")}),
        **_nats_sink_settings(servers[2], "wrong-seed", auth={"nkey_seed": new_secret("invalid seed of an nkey")}),
        **_nats_sink_settings(
            servers[2],
            "other-seed",
            auth={"nkey_seed": secret_containers.canaries.adopt("other seed", Key.generate().seed)},
        ),
        **_nats_sink_settings(
            servers[3], "wrong-creds", auth={"creds_file": write_file("wrong.creds", new_secret("invalid credentials"))}
        ),
    }
    for mechanism in ("plain", "scram-sha-256", "scram-sha-512"):
        failing |= sink_settings(
            f"wrong-{mechanism}", mechanism=mechanism, password=new_secret(f"wrong password for {mechanism}")
        )
    for settings in failing.values():  # the working ones keep their long timeout
        settings["request_timeout" if settings["type"] == "kafka" else "timeout"] = "5s"
    return SecretBrokers(
        kafka, servers, working, failing, {"WHALEBRIDGE_SINKS__BY-ENVIRONMENT__AUTH__PASSWORD": password}
    )
