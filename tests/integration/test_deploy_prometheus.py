"""What is deployed to watch the server, on a real Prometheus that scrapes a real server with a real Redis.

Time runs 60 times faster for the rules: their windows, offsets and ``for`` are cut, nothing else (`prometheus_server`).
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from films import ITEM_IDS
from prometheus_server import PrometheusServer
from redis_server import RedisServer
from server_process import ServerProcess, make_bundle
from stores import another_version, version_of

from igd_core.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
VARIANTS = '[{"name": "plain", "alpha": 0}, {"name": "bold", "alpha": 0.4}]'
CLIENTS = 4
# One question in three names a history that is rarely asked again: answers are found, and missed.
STRANGERS = 3


@dataclass(slots=True, kw_only=True)
class Watched:
    """A server, its Redis, the Prometheus that watches it, and where clients ask."""

    server: ServerProcess
    redis: RedisServer
    prometheus: PrometheusServer
    artifact_dir: Path

    @property
    def url(self) -> str:
        return str(self.server.event("listening")["url"])

    def fires(self, *alerts: str) -> None:
        """Wait for alerts to fire, under the names that the rules give them."""
        self.prometheus.until(
            lambda: set(alerts) <= self.prometheus.firing(), lambda: f"{alerts}; {self.prometheus.firing()} fire"
        )


class Traffic:
    """Clients that ask, record what they click, and sometimes ask for what nobody has time for; until stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._number = itertools.count()
        self._threads = ThreadPoolExecutor(CLIENTS)

    def __enter__(self) -> Traffic:
        self._clients = [self._threads.submit(self._client, number) for number in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        for client in self._clients:
            client.result()

    def _client(self, number: int) -> None:
        user = f"user-{number}"
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.is_set():
                drawn = next(self._number)
                history = (
                    [ITEM_IDS[drawn % 12]]
                    if drawn % STRANGERS
                    else [ITEM_IDS[(drawn * step) % 19] for step in (1, 5, 7)]
                )
                answer = client.post("/v1/recommendations", json={"history": history, "k": 3, "user_id": user})
                if answer.is_success and answer.json()["items"]:
                    client.post("/v1/events", json={"events": [self._click(user, answer.json(), drawn)]})
                client.post("/v1/recommendations", json={"history": history, "k": 3, "alpha": 0.1, "timeout_ms": 1})
                client.post("/v1/recommendations", json={"user_id": user, "k": 3})
                self._stop.wait(0.02)

    @staticmethod
    def _click(user: str, answer: dict[str, Any], drawn: int) -> dict[str, Any]:
        return {
            "event_id": f"click-{drawn}",
            "user_id": user,
            "item_id": answer["items"][0]["item_id"],
            "timestamp": 1_760_000_000_000 + drawn,
            "request_id": answer["request_id"],
        }


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory,
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
) -> Iterator[Watched]:
    root = tmp_path_factory.mktemp("watched")
    bundle = make_bundle(root, definition, tokenizer, checkpoint_of("llama-fp32"))
    for name in ("redis", "prometheus"):
        (root / name).mkdir()
    with RedisServer(root / "redis") as redis:
        assert main(["publish", "--artifact", str(bundle.artifact_dir), "--store", redis.url]) == 0
        server = ServerProcess.start(
            *("--catalogues", "films", "--store", redis.url, "--model", str(bundle.model_dir)),
            *("--operations-port", "0", "--variants", VARIANTS),
            IGD_CACHE_DIR=str(root / "cache"),
            IGD_POLL_S="0.5",
            IGD_MAX_RUNNING="1",
            IGD_MAX_WAITING="3",
        )
        try:
            server.event("ready")
            target = server.event("listening")["operations_url"].removeprefix("http://").rstrip("/")
            with PrometheusServer(root / "prometheus", RULES, {"igd": target}) as prometheus:
                yield Watched(server=server, redis=redis, prometheus=prometheus, artifact_dir=bundle.artifact_dir)
        finally:
            server.stop()


def expressions() -> list[str]:
    """Of all rules; comparisons answer 0 or 1 rather than nothing, so that what they compare must be there."""
    found = []
    for path in sorted(RULES.iterdir()):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                asked = rule["expr"]
                if "alert" in rule:
                    asked = re.sub(r" (>|<|==|>=|<=) (?=[\d(])", r" \1 bool ", asked)
                found.append(asked)
    return found


def panels() -> list[str]:
    """Queries, with Grafana's variables filled in as Grafana would, for the last 20 seconds."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "igd.json").read_text(encoding="utf-8"))
    filled = {"$__rate_interval": "20s", "$__range": "20s", "$job": "igd"}
    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in filled.items():
                query = query.replace(name, value)
            found.append(query)
    return found


def test_promtool_accepts_the_configuration_and_the_rules_and_their_unit_tests() -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    for command in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", *(f"rules/{path.name}" for path in RULES.iterdir())],
        ["test", "rules", "rules_test.yml", "rules_days_test.yml"],
    ):
        done = subprocess.run([tool, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def publish_a_damaged_version(watched: Watched) -> None:
    """All of it is stored; then a byte changes in Redis, and then it becomes the current one."""
    damaged = another_version(watched.artifact_dir, watched.artifact_dir.parent / "damaged", alpha=0.9)
    version = version_of(damaged)
    store = ["--store", watched.redis.url]
    assert main(["publish", "--artifact", str(damaged), "--no-activate", *store]) == 0
    watched.redis.cli("setrange", f"igd:{{films}}:chunk:{version}:trie.safetensors:0", "100", "x")
    assert main(["rollback", "--catalogue", "films", "--version", version, *store]) == 0


def test_under_traffic_every_rule_and_every_panel_has_data(watched: Watched) -> None:
    """The first on this server, which the tests after it break one part at a time."""
    publish_a_damaged_version(watched)
    left = {*expressions(), *panels()}

    def none_left() -> bool:
        nonlocal left
        left = {query for query in left if not watched.prometheus.ask(query)}
        return not left

    with Traffic(watched.url):
        watched.prometheus.until(none_left, lambda: "\n".join(sorted(left)))


def test_a_damaged_version_fires_that_it_was_refused(watched: Watched) -> None:
    watched.fires("IgdCatalogueRefused")


def test_more_requests_than_capacity_fire_overload_and_the_error_budget(watched: Watched) -> None:
    stop = threading.Event()

    def crowd(number: int) -> None:
        with httpx.Client(base_url=watched.url, timeout=30) as client:
            for asked in itertools.count():
                if stop.is_set():
                    return
                history = [ITEM_IDS[(number + asked * step) % 19] for step in (1, 3, 4, 9)]
                client.post("/v1/recommendations", json={"history": history, "k": 5, "beams": 20, "fallback": False})

    with ThreadPoolExecutor(12) as clients:
        asking = [clients.submit(crowd, number) for number in range(12)]
        try:
            watched.fires("IgdOverloaded", "IgdErrorBudgetBurnsFast")
        finally:
            stop.set()
    for client in asking:
        client.result()


def test_redis_gone_fires_that_the_store_is_down_and_its_return_ends_that(watched: Watched) -> None:
    watched.redis.kill()
    watched.fires("IgdStoreDown")
    watched.redis.start()
    watched.prometheus.until(lambda: "IgdStoreDown" not in watched.prometheus.firing(), lambda: "IgdStoreDown fires on")


def test_a_server_that_is_gone_fires_that_it_is_down_and_that_nobody_serves(watched: Watched) -> None:
    assert watched.server.stop() == 0
    watched.fires("IgdServerDown", "IgdNobodyServes")
