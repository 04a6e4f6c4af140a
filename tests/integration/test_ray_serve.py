"""The server on a real Ray Serve: same answers, people stay on their replica, a killed replica comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from checkpoints import write_checkpoint
from patience import PATIENCE_S
from ray_parts import require_ray
from redis_server import RedisServer, free_port

from igd_core.artifact import load_artifact
from igd_core.engines.open import EngineOptions, open_engine
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender
from igd_core.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from igd_core.engines.embedded.checkpoint import Checkpoint

require_ray("serve")

CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
- name: igd
  import_path: igd_server.ray_serve:app
  args:
    replicas: "2"
    cpus: 0.5
    catalogues: films
    model: {model}
    device: cpu
    store: {store}
    cache_dir: {cache}
    open_access: "true"
    trial_s: "0"
    takeover_spread_s: "0"
"""
ENVIRONMENT = {
    "RAY_SERVE_SESSION_ID_HEADER_KEY": "x-user-id",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@pytest.fixture
def served(
    checkpoint_of: Callable[[str], Checkpoint], definition: dict[str, Any], pristine_bundle: Path, tmp_path: Path
) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of an application of two replicas, and the model."""
    model = write_checkpoint(tmp_path / "model", checkpoint_of("llama-fp32").model, definition)
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as redis:

        async def publish() -> None:
            store = open_store(redis.url)
            await store.activate("films", await store.add(pristine_bundle, catalogue="films"))
            await store.close()

        asyncio.run(publish())
        port = free_port()
        config = tmp_path / "serve.yaml"
        config.write_text(CONFIG.format(port=port, model=model, store=redis.url, cache=tmp_path / "cache"))
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
                until(lambda: process.poll() is not None or ready(client), "it serves")
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                yield client, model
        finally:
            tree = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            for each in tree:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    continue


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 4 * PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def ask(client: httpx.Client, history: list[str], *, user: str | None = None) -> httpx.Response:
    body = {"history": history, "k": 3, "beams": 4}
    return client.post("/v1/recommendations", json=body, headers={} if user is None else {"x-user-id": user})


def replica_of(client: httpx.Client, user: str) -> tuple[float, float]:
    """Which replica a user has, by its process's start, and how many recommendations it has answered."""
    began = answers = 0.0
    for line in client.get("/metrics", headers={"x-user-id": user}).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name == "process_start_time_seconds":
            began = float(value)
        elif name.startswith("igd_recommendations_total{"):
            answers += float(value)
    return began, answers


def replicas() -> list[psutil.Process]:
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if "ServeReplica:igd:igd" in " ".join(each.info["cmdline"] or [])
    ]


@pytest.mark.timeout(600)
def test_answers_are_the_servers_people_stay_and_a_killed_replica_comes_back(
    served: tuple[httpx.Client, Path], pristine_bundle: Path
) -> None:
    client, model = served
    artifact, opened = load_artifact(pristine_bundle), open_engine(EngineOptions(model=model, device="cpu"))
    ids = artifact.catalogue.item_ids

    async def expected(history: list[int]) -> list[str]:
        query = Query(history=[ItemIndex(item) for item in history], k=3, beams=4)
        return [ids[item.item] for item in (await recommender.recommend(query)).items]

    with asyncio.Runner() as runner:
        runner.run(opened.engine.load(artifact))
        recommender = Recommender(artifact, opened.engine)
        for first in range(6):
            found = ask(client, [ids[first], ids[first + 3]])
            assert found.status_code == 200, found.text
            assert [item["item_id"] for item in found.json()["items"]] == runner.run(expected([first, first + 3]))
        runner.run(opened.engine.close())
    refused = client.post("/v1/recommendations", json={"history": 3})
    assert (refused.status_code, refused.json()["field"]) == (422, "history")

    users = [f"user-{number}" for number in range(11)]
    until(lambda: len({replica_of(client, user)[0] for user in users}) == 2, "both replicas serve")
    before = {user: replica_of(client, user) for user in users}
    for user in users:
        for _ in range(2):
            assert ask(client, [ids[1]], user=user).status_code == 200
    for user in users:
        began, answers = replica_of(client, user)
        neighbours = sum(each[0] == began for each in before.values())
        assert (began, answers) == (before[user][0], before[user][1] + 2 * neighbours)

    there = replicas()
    assert len(there) == 2
    there[0].kill()
    statuses = [ask(client, [ids[number % 6]]).status_code for number in range(30)]
    assert statuses.count(200) >= 29, statuses  # what it was answering breaks off
    until(
        lambda: len({replica_of(client, user)[0] for user in users} - {before[user][0] for user in users}) == 1,
        "it is back",
    )
