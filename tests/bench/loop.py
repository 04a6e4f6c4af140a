"""The loop, closed: `python tests/bench/loop.py`, on Linux; two and a half minutes on two cores.

A made-up population has a hidden preference: after an item it wants the one that stands so many places further on. It
asks `igd serve`, clicks what it wants if that is shown, and finds it by itself if not; events go to the server over
HTTP. `igd retune` then makes the next model, which the server takes while others ask all the time. After that the
preference changes, and the loop goes round once more.

Printed: how often people found what they wanted among the items shown, in each phase; the difference that each round
made, with its 95 % interval over people; and how many requests failed meanwhile, which must be none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from checkpoints import write_checkpoint  # noqa: E402 - from tests/, by the line above
from factories import EOS, tiny_checkpoint, tokenizer_definition  # noqa: E402
from films import ITEM_IDS, film_artifact  # noqa: E402
from redis_server import RedisServer, free_port  # noqa: E402

from igd_core.artifact import BuildOptions, build_artifact, save_artifact  # noqa: E402
from igd_core.catalogue.tokenization import TitleTokenizer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ITEMS = ITEM_IDS[:-1]  # the last one's id holds white space, which rows cannot say
SHOWN = 3
RECIPE = """
tuning: {epochs: 12, patience: 4, lr: 0.003, batch: 32, micro_batches: 1, warmup_steps: 5, beta: 1.0, rows_per_user: 8}
"""
_DAY_MS = 86_400_000


@dataclass(slots=True)
class Load:
    """Requests that others made all the time: how many, and what went wrong with which."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Loop:
    """The population, and what it talks to."""

    client: httpx.AsyncClient
    people: int
    at: np.ndarray
    now_ms: int = 1_700_000_000_000

    async def phase(self, steps: int, preference: int) -> np.ndarray:
        """Everybody takes so many steps; ``(people,)`` float64, how often each was shown what was wanted."""
        found = np.zeros(self.people)
        for _ in range(steps):
            self.now_ms += _DAY_MS
            wanted = (self.at + preference) % len(ITEMS)
            found += await asyncio.gather(*(self._step(user, int(wanted[user])) for user in range(self.people)))
            self.at = wanted
        return found / steps

    async def _step(self, user: int, wanted: int) -> bool:
        name, item_id = f"u{user}", ITEMS[wanted]
        asked = {"user_id": name, "k": SHOWN, "exclude_seen": False}
        answer = (await self.client.post("/v1/recommendations", json=asked)).raise_for_status().json()
        shown = [item["item_id"] for item in answer["items"]]
        event: dict[str, Any] = {"user_id": name, "item_id": item_id, "timestamp": self.now_ms + user}
        if item_id in shown:
            event |= {"request_id": answer["request_id"], "position": 1 + shown.index(item_id)}
        (await self.client.post("/v1/events", json={"events": [event]})).raise_for_status()
        return item_id in shown


@contextlib.asynccontextmanager
async def under_load(client: httpx.AsyncClient) -> AsyncIterator[Load]:
    """Others ask all the time; each answer must be the model's."""
    load, stop = Load(), asyncio.Event()

    async def ask(number: int) -> None:
        rng = np.random.default_rng(number)
        while not stop.is_set():
            history = [ITEMS[each] for each in rng.integers(len(ITEMS), size=4)]
            answer = await client.post("/v1/recommendations", json={"history": history, "k": SHOWN})
            load.answers += 1
            if answer.status_code != 200 or answer.json()["source"] != "model":
                load.failures.append(f"{answer.status_code} {answer.text[:200]}")
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as others:
        for number in range(3):
            others.create_task(ask(number))
        try:
            yield load
        finally:
            stop.set()


async def igd(*arguments: object, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; what it prints as JSON."""
    command = [str(Path(sys.executable).with_name("igd")), *map(str, arguments), "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    out, err = await process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {err.decode()[-2000:]}")
    told: dict[str, Any] = json.loads(out)
    return told


async def serves(client: httpx.AsyncClient, version: str | None = None) -> None:
    """Wait until the server answers with this version, or at all."""
    async with asyncio.timeout(180):
        while True:
            with contextlib.suppress(httpx.TransportError):
                found = (await client.get("/v1/catalogues")).json()["catalogues"]
                if found and version in (None, found[0]["version"]):
                    return
            await asyncio.sleep(0.2)


def difference(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Of the means, with its 95 % interval: a bootstrap over people, who are the same in both."""
    people = np.random.default_rng(0).integers(len(before), size=(2000, len(before)))
    low, high = np.quantile((after - before)[people].mean(axis=1), [0.025, 0.975])
    rounded = {"difference": float((after - before).mean()), "low": float(low), "high": float(high)}
    return {name: round(value, 3) for name, value in rounded.items()}


async def run(root: Path, people: int) -> dict[str, Any]:
    """Both rounds."""
    definition = tokenizer_definition()
    tokenizer = TitleTokenizer(definition, EOS)
    write_checkpoint(root / "own", tiny_checkpoint("llama-fp32", tokenizer).model, definition)
    catalogue = film_artifact(tokenizer).catalogue.take(range(len(ITEMS)))
    save_artifact(build_artifact(catalogue, tokenizer, BuildOptions(name="films")), root / "films")
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (root / "redis").mkdir()
    with RedisServer(root / "redis") as redis:
        shared = {**os.environ, "IGD_STORE": redis.url, "OMP_NUM_THREADS": "1"}
        await igd("publish", "--artifact", root / "films", environment=shared)
        port = free_port()
        settings = {
            "IGD_CATALOGUES": "films", "IGD_MODEL": str(root / "own"), "IGD_PORT": str(port), "IGD_TRIAL_S": "1",
            "IGD_CACHE_DIR": str(root / "cache"), "IGD_DEVICE": "cpu", "IGD_STORE_TIMEOUT_MS": "5000",
            "IGD_DEFAULT_TIMEOUT_MS": "20000", "IGD_POLL_S": "0.5",
        }  # fmt: skip
        command = str(Path(sys.executable).with_name("igd"))
        server = await asyncio.create_subprocess_exec(
            command, "serve", env=shared | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                await serves(client)
                start = np.random.default_rng(1).integers(len(ITEMS), size=people)
                return await _rounds(Loop(client=client, people=people, at=start), root, shared)
        finally:
            server.terminate()
            await server.wait()


async def _rounds(loop: Loop, root: Path, environment: dict[str, str]) -> dict[str, Any]:
    flags = ("--catalogue", "films", "--model", root / "own", "--out", root / "rounds", "--recipe",
             root / "recipe.yaml", "--lora-rank", 0, "--least-rows", 50, "--judged-rows", 200,
             "--publish-if", "certainly-better", "--device", "cpu")  # fmt: skip
    rates: dict[str, float] = {}
    rounds, load_of = [], []
    for number, (preference, steps) in enumerate(((3, 10), (7, 20)), start=1):
        before = await loop.phase(steps, preference)
        async with under_load(loop.client) as load:
            told = await igd("retune", *flags, environment=environment)
            if told["version"]:
                await serves(loop.client, told["version"])
        after = await loop.phase(6, preference)
        rates |= {f"round {number}, before": round(float(before.mean()), 3)}
        rates |= {f"round {number}, after": round(float(after.mean()), 3)}
        rounds.append({"published": told["published"], "why": told["why"], "shown": difference(before, after)})
        load_of.append(load)
    failures = [failure for load in load_of for failure in load.failures]
    return {
        "people": loop.people,
        "share_of_answers_that_showed_what_was_wanted": rates,
        "rounds": rounds,
        "requests_meanwhile": sum(load.answers for load in load_of),
        "failed": len(failures),
        "failures": failures[:5],
    }


def main() -> int:
    """Run, print; 1 if a request failed, or a round did not help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="igd-loop-") as root:
        told = asyncio.run(run(Path(root), args.people))
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
    return int(bool(told["failed"]) or any(each["shown"]["low"] <= 0 for each in told["rounds"]))


if __name__ == "__main__":
    sys.exit(main())
