"""The loop, closed: `python tests/bench/loop.py`, on Linux; five and a half minutes on two busy cores.

A made-up population has a hidden preference: after an item it wants the one that stands so many places further on. It
asks `igd serve`, clicks what it wants if that is shown, and finds it by itself if not; events go to the server over
HTTP. The server has two variants, `old` and `new`, each with a catalogue of its own that begins with the same version;
it assigns half of the people to each. `igd retune` makes the next model of `new`'s catalogue, which the server takes
while others ask all the time, and both are served side by side. Then `old` gets the model of `new`, the preference
changes, and the loop goes round once more.

Printed, for each round: how often people were shown what they wanted before and after it, by variant, as the population
knows; the click rates of both variants after it and their difference, as `igd variants` reads them from an export of
the server's own records, and as the server's metrics count them; and how many requests failed meanwhile, which must be
none.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

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
VARIANTS = {"old": "films", "new": "films-new"}
"""Each with its catalogue."""
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
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(16))

    async def phase(self, steps: int, preference: int) -> dict[str, float]:
        """Everybody takes so many steps; how often people of each variant were shown what they wanted."""
        found: dict[str, list[bool]] = {name: [] for name in VARIANTS}
        for _ in range(steps):
            self.now_ms += _DAY_MS
            wanted = (self.at + preference) % len(ITEMS)
            for catalogue, was_shown in await asyncio.gather(
                *(self._step(user, int(wanted[user])) for user in range(self.people))
            ):
                found[next(name for name, own in VARIANTS.items() if own == catalogue)].append(was_shown)
            self.at = wanted
        return {name: round(float(np.mean(shown)), 3) for name, shown in found.items()}

    async def _step(self, user: int, wanted: int) -> tuple[str, bool]:
        name, item_id = f"u{user}", ITEMS[wanted]
        asked = {"user_id": name, "k": SHOWN, "exclude_seen": False}
        async with self.places:  # no crowd: overload is not what this asks about
            answer = (await self.client.post("/v1/recommendations", json=asked)).raise_for_status().json()
        shown = [item["item_id"] for item in answer["items"]]
        event: dict[str, Any] = {"user_id": name, "item_id": item_id, "timestamp": self.now_ms + user}
        if item_id in shown:
            event |= {"request_id": answer["request_id"], "position": 1 + shown.index(item_id)}
        (await self.client.post("/v1/events", json={"events": [event]})).raise_for_status()
        return answer["catalogue"], item_id in shown


@contextlib.asynccontextmanager
async def under_load(client: httpx.AsyncClient) -> AsyncIterator[Load]:
    """Others ask all the time; each answer must be the model's."""
    load, stop = Load(), asyncio.Event()

    async def ask(number: int) -> None:
        rng = np.random.default_rng(number)
        while not stop.is_set():
            history = [ITEMS[each] for each in rng.integers(len(ITEMS), size=4)]
            asked = {"history": history, "k": SHOWN, "variant": str(rng.choice(list(VARIANTS)))}
            answer = await client.post("/v1/recommendations", json=asked)
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


async def serves(client: httpx.AsyncClient, version: str | None = None, *, catalogue: str = "films") -> None:
    """Wait until the server answers with this version of a catalogue, or with all of them."""
    async with asyncio.timeout(180):
        while True:
            with contextlib.suppress(httpx.TransportError):
                found = (await client.get("/v1/catalogues")).json()["catalogues"]
                served = {each["name"]: each["version"] for each in found}
                if len(served) == len(VARIANTS) and version in (None, served[catalogue]):
                    return
            await asyncio.sleep(0.2)


async def counted(client: httpx.AsyncClient) -> dict[str, tuple[float, float]]:
    """Answers and attributed events of each variant, as the metrics have them."""
    await asyncio.sleep(1)  # attribution runs behind the answers
    text = (await client.get("/metrics")).raise_for_status().text
    totals = dict.fromkeys(VARIANTS, (0.0, 0.0))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.labels.get("variant")
            if name in totals:
                answers, events = totals[name]
                answers += sample.value * (sample.name == "igd_recommendations_total")
                events += sample.value * (sample.name == "igd_attributed_events_total")
                totals[name] = answers, events
    return totals


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
        for own in VARIANTS.values():
            await igd("publish", "--artifact", root / "films", "--catalogue", own, environment=shared)
        port = free_port()
        settings = {
            "IGD_CATALOGUES": ",".join(VARIANTS.values()), "IGD_IMPRESSIONS": "true", "IGD_TRIAL_S": "1",
            "IGD_MODEL": str(root / "own"), "IGD_PORT": str(port),
            "IGD_CACHE_DIR": str(root / "cache"), "IGD_DEVICE": "cpu", "IGD_STORE_TIMEOUT_MS": "5000",
            "IGD_DEFAULT_TIMEOUT_MS": "20000", "IGD_POLL_S": "0.5", "IGD_TAKEOVER_SPREAD_S": "0",
            "IGD_VARIANTS": json.dumps([{"name": name, "catalogue": own} for name, own in VARIANTS.items()]),
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
    flags = ("--catalogue", VARIANTS["new"], "--model", root / "own", "--out", root / "rounds", "--recipe",
             root / "recipe.yaml", "--lora-rank", 0, "--least-rows", 50, "--judged-rows", 200,
             "--publish-if", "certainly-better", "--device", "cpu")  # fmt: skip
    rounds, loads = [], []
    for number, (preference, steps) in enumerate(((3, 10), (7, 20)), start=1):
        before = await loop.phase(steps, preference)
        async with under_load(loop.client) as load:
            told = await igd("retune", *flags, environment=environment)
            if told["version"]:
                await serves(loop.client, told["version"], catalogue=VARIANTS["new"])
        loads.append(load)
        counts, since = await counted(loop.client), datetime.now(UTC).isoformat()
        after = await loop.phase(6, preference)
        told_by_metrics = {
            name: {"answers": answers - counts[name][0], "events": events - counts[name][1]}
            for name, (answers, events) in (await counted(loop.client)).items()
        }
        export = root / f"export-{number}"
        await igd("export", "--out", export, environment=environment)
        verdict = await igd("variants", "--export", export, "--since", since, "--base", "old", environment=environment)
        rounds.append(
            {
                "published": told["published"],
                "why": told["why"],
                "shown_what_was_wanted": {"before": before, "after": after},
                "variants": verdict["variants"],
                "metrics": told_by_metrics,
            }
        )
        if number == 1:  # what has won is for everybody
            await _promote(loop.client, environment)
    failures = [failure for load in loads for failure in load.failures]
    return {
        "people": loop.people,
        "rounds": rounds,
        "requests_meanwhile": sum(load.answers for load in loads),
        "failed": len(failures),
        "failures": failures[:5],
    }


async def _promote(client: httpx.AsyncClient, environment: dict[str, str]) -> None:
    """Serve the old variant with the model of the new one."""
    versions = (await igd("versions", environment=environment))[VARIANTS["new"]]
    (model,) = (each["model"] for each in versions if each["current"])
    if model is not None:
        told = await igd("publish", "--catalogue", VARIANTS["old"], "--model", model, environment=environment)
        await serves(client, told["version"], catalogue=VARIANTS["old"])


def main() -> int:
    """Run, print; 1 if a request failed, or a round's new variant is not certainly better."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=80)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="igd-loop-") as root:
        told = asyncio.run(run(Path(root), args.people))
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
    differences = [each["variants"][-1]["difference"] for each in told["rounds"]]
    return int(bool(told["failed"]) or any(found is None or found["low"] <= 0 for found in differences))


if __name__ == "__main__":
    sys.exit(main())
