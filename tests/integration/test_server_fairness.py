"""One client's heavy batches beside two ordinary clients: a real `igd serve` with the embedded engine, real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from factories import make_catalogue
from igd_server.http.keys import KeyFile, make_key, write_keys
from server_process import ServerProcess

from igd_core.artifact import BuildOptions, build_artifact, save_artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.checkpoint import Checkpoint

NUM_ITEMS = 1000
CLIENTS = ("heavy", "one", "other")
PATIENCE_MS = 5000
SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where, and with which key each client asks."""

    url: str
    keys: dict[str, str]
    server: ServerProcess


@dataclass(slots=True)
class Got:
    """What a client's requests (a batch's entries) came to: statuses, and the seconds that the answers took."""

    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def answered(self) -> float:
        """Share of the requests that the model answered in time."""
        return self.statuses.count(200) / len(self.statuses)


@pytest.fixture(scope="module")
def served(
    definition: dict[str, Any],
    tokenizer: TitleTokenizer,
    checkpoint_of: Callable[[str], Checkpoint],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("fairness")
    checkpoint_of("llama-fp32").model.save_pretrained(root / "model")
    (root / "model" / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (root / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    save_artifact(build_artifact(make_catalogue(NUM_ITEMS), tokenizer, BuildOptions(name="films")), root / "films")
    keys = {name: make_key(name, frozenset({"recommend"}), None) for name in CLIENTS}
    write_keys(root / "keys.json", KeyFile(keys=tuple(key.stored for key in keys.values())))
    server = ServerProcess.start(
        *("--artifact", str(root / "films"), "--model", str(root / "model"), "--keys-file", str(root / "keys.json")),
        IGD_RESULT_TTL_S="0",
    )
    try:
        server.event("ready")
        url = server.event("listening")["url"]
        yield Served(url=url, keys={name: key.token for name, key in keys.items()}, server=server)
    finally:
        server.stop()
    server.assert_ended_well()


def client_of(served: Served, name: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {served.keys[name]}"}
    return httpx.AsyncClient(base_url=served.url, headers=headers, timeout=60)


def history(number: int) -> list[str]:
    return [f"item-{(number * 37 + row * 11) % NUM_ITEMS}" for row in range(10)]


async def ask(served: Served, name: str, got: Got, until: float) -> None:
    """One ordinary request after another."""
    number = 1000 * CLIENTS.index(name)
    async with client_of(served, name) as client:
        while time.monotonic() < until:
            number += 1
            body = {"history": history(number), "timeout_ms": PATIENCE_MS, "fallback": False}
            started = time.monotonic()
            got.statuses.append((await client.post("/v1/recommendations", json=body)).status_code)
            got.seconds.append(time.monotonic() - started)


async def ask_batches(served: Served, got: Got, until: float) -> None:
    """Batches of 32 with 200 beams, one after another."""
    number = 0
    async with client_of(served, "heavy") as client:
        while time.monotonic() < until:
            entries = [
                {"history": history(number + entry), "beams": 200, "k": 50, "fallback": False, "timeout_ms": 4000}
                for entry in range(32)
            ]
            number += len(entries)
            answer = await client.post("/v1/recommendations:batch", json={"requests": entries})
            got.statuses += [result["status"] for result in answer.json()["results"]]


async def together(served: Served, *, heavy: bool) -> dict[str, Got]:
    got = {name: Got() for name in CLIENTS}
    until = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as group:
        if heavy:
            for _ in range(4):  # a client that opens many connections is one client
                group.create_task(ask_batches(served, got["heavy"], until))
            await asyncio.sleep(0.5)
        for name in CLIENTS[1:]:
            group.create_task(ask(served, name, got[name], until))
    return got


def told(got: dict[str, Got]) -> str:
    return "; ".join(
        f"{name}: {len(each.statuses)} asked, {each.answered:.0%} answered"
        + (f", median {sorted(each.seconds)[len(each.seconds) // 2]:.3f} s" if each.seconds else "")
        for name, each in got.items()
        if each.statuses
    )


async def test_heavy_batches_leave_ordinary_clients_their_answers(served: Served) -> None:
    alone = await together(served, heavy=False)
    beside = await together(served, heavy=True)
    print(f"\nalone  {told(alone)}\nbeside {told(beside)}")  # noqa: T201 - shown by ``pytest -s``
    for name in CLIENTS[1:]:
        assert beside[name].answered >= 0.9, told(beside)
        # Each has a third of the model, where it had a half; and waits for a heavy call in progress now and then.
        assert len(beside[name].statuses) >= len(alone[name].statuses) / 8, (told(alone), told(beside))
    assert 200 in beside["heavy"].statuses, "nor does the heavy one starve"
