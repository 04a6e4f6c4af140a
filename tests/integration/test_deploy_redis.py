"""Redis as compose and Kubernetes start it: their command, run as it stands by a real redis-server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from redis_server import HOST, free_port, patiently
from stores import event

from igd_core.errors import StoreError
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY = Path(__file__).parents[2] / "deploy"
PASSWORD = "5f0c3a9e" * 8
PERMISSIONS = re.compile(r"~igd:\* [^`\n]*")

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed: apt-get install redis-server"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What a deployment says of its Redis.

    Attributes:
        command: as its container runs it.
        variables: of the container, the password filled in.
        check: its probe's command.
        url: the servers', with the placeholder of the password filled in.
    """

    command: list[str]
    variables: dict[str, str]
    check: list[str]
    url: str


def compose() -> Deployed:
    text = re.sub(r"\$\{IGD_REDIS_PASSWORD:\?[^}]*\}", PASSWORD, (DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    services = yaml.safe_load(text)["services"]
    redis = services["redis"]
    url = services["server"]["environment"]["IGD_STORE"]
    assert services["publish"]["environment"]["IGD_STORE"] == url
    return Deployed(
        command=[argument.replace("$$", "$") for argument in redis["command"]],
        variables=redis["environment"],
        check=redis["healthcheck"]["test"][1:],
        url=url,
    )


def kubernetes() -> Deployed:
    component = DEPLOY / "kubernetes" / "components" / "redis"
    documents = yaml.safe_load_all((component / "redis.yaml").read_text(encoding="utf-8"))
    (container,) = next(one for one in documents if one["kind"] == "StatefulSet")["spec"]["template"]["spec"][
        "containers"
    ]
    head = (component / "kustomization.yaml").read_text(encoding="utf-8")
    told = re.search(r'--from-literal=url="(\S+)"', head)
    assert told is not None
    secrets = {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]}
    assert set(map(str, secrets.values())) == {"{'name': 'igd-redis', 'key': 'password'}"}
    return Deployed(
        command=container["command"],
        variables=dict.fromkeys(secrets, PASSWORD),
        check=container["readinessProbe"]["exec"]["command"],
        url=told[1].replace("$password", PASSWORD),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A running Redis."""

    deployed: Deployed
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return self.deployed.url.replace("redis:6379", f"{HOST}:{self.port}")

    def check(self, **variables: str) -> int:
        command = [self.deployed.check[0], "-p", str(self.port), *self.deployed.check[1:]]
        environment = {**os.environ, **variables}
        return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=15).returncode

    def cli(self, *arguments: str) -> str:
        command = ["redis-cli", "-p", str(self.port), "--user", "igd", *arguments]
        environment = {**os.environ, "REDISCLI_AUTH": PASSWORD}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=15).stdout


@pytest.fixture(params=[compose, kubernetes])
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Started]:
    deployed: Deployed = request.param()
    port = free_port()
    command = [
        part.replace("redis-server -", f"redis-server - --port {port} --bind {HOST}") for part in deployed.command
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **deployed.variables},
        stdout=subprocess.DEVNULL,
    )
    running = Started(deployed=deployed, port=port, process=process)
    try:
        for _ in patiently("redis"):
            if running.check(REDISCLI_AUTH=PASSWORD) == 0:
                break
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, "the signal reaches Redis itself, which saves and ends"


async def test_redis_asks_for_the_password_and_its_user_may_do_what_the_store_does_and_no_more(
    started: Started,
) -> None:
    assert started.check(**started.deployed.variables) == 0
    assert started.check(REDISCLI_AUTH="wrong") != 0
    assert started.check(REDISCLI_AUTH="") != 0
    assert PASSWORD not in " ".join(psutil.Process(started.process.pid).cmdline())
    documented = PERMISSIONS.search((DEPLOY.parent / "docs" / "how-to" / "redis.md").read_text(encoding="utf-8"))
    assert documented is not None
    assert f"{documented[0]} +info" in " ".join(started.deployed.command)
    store = open_store(started.url)
    assert await store.append("ann", [event(1)]) == 1
    assert await store.history("ann") == [event(1)]
    await store.close()
    for command in (("config", "get", "*"), ("acl", "list"), ("keys", "*"), ("get", "another:key"), ("flushall",)):
        assert "NOPERM" in started.cli(*command), command
    assert "used_memory" in started.cli("info", "memory")
    without = open_store(f"redis://{HOST}:{started.port}/0")
    with pytest.raises(StoreError, match=r"(?i)auth") as refused:
        await without.history("ann")
    assert PASSWORD not in str(refused.value)
    await without.close()


def images(node: Any) -> set[str]:
    if isinstance(node, dict):
        return {str(node["image"])} if isinstance(node.get("image"), str) else set().union(*map(images, node.values()))
    return set().union(*map(images, node)) if isinstance(node, list) else set()


def test_redis_is_one_version_wherever_it_is_started() -> None:
    found = set()
    for path in (DEPLOY / "compose.yaml", DEPLOY / "kubernetes" / "components" / "redis" / "redis.yaml"):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            found |= {image for image in images(document) if image.startswith("redis:")}
    assert len(found) == 1
