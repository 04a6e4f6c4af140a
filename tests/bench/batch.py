"""`igd batch` on local Ray over many rows, killed on the way: `python tests/bench/batch.py run --artifact A ...`.

``run`` starts `igd batch`, kills one of its actors with SIGKILL at a fourth of the parts and its driver at a half, runs
the same command again, and then looks: is every row there once, with ranks from 1 on, or in the side file? Are the
lists of some rows those of an engine of another process (`igd recommend`'s)? It prints memory and CPU time, too.

``turns`` gives the same rows, part by part, to `igd batch`, to `igd serve` over HTTP and to one engine in a plain loop,
which take turns of so many seconds; those that wait are stopped. It prints rows a second and CPU seconds a row.

Set ``nice`` around it, and ``RAY_worker_niceness=0``, which this sets, keeps actors from being nicer still.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pyarrow.parquet as pq

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from redis_server import free_port  # noqa: E402 - from tests/, by the line above

from igd_core.artifact import Artifact, load_artifact  # noqa: E402
from igd_core.engines.open import EngineOptions, open_engine  # noqa: E402
from igd_core.search.query import Query  # noqa: E402
from igd_core.search.recommender import Recommender  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENVIRONMENT = os.environ | {"RAY_worker_niceness": "0"}
_MIB = 2**20
_LOOK_S = 5.0


@dataclass(slots=True)
class Tree:
    """A command, all that it started, and what that used; Ray's processes are sessions of their own."""

    process: subprocess.Popen[bytes]
    known: dict[int, psutil.Process] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    memory: list[tuple[float, dict[str, list[int]]]] = field(default_factory=list)

    def look(self) -> None:
        """Note processes, CPU seconds and memory as they are now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            for each in (top, *top.children(recursive=True)):
                self.known.setdefault(each.pid, each)
        now: dict[str, list[int]] = {}
        for pid, each in list(self.known.items()):
            with contextlib.suppress(psutil.Error):
                times, kind = each.cpu_times(), self._kind(each)
                self.cpu[pid] = times.user + times.system
                now.setdefault(kind, []).append(each.memory_info().rss // _MIB)
        self.memory.append((time.monotonic(), now))
        for kind, sizes in now.items():
            self.most[kind] = max(self.most.get(kind, 0), *sizes)

    def _kind(self, process: psutil.Process) -> str:
        line = " ".join(process.cmdline())
        if process.pid == self.process.pid:
            return "driver"
        return "actor" if "ChunkActor" in line else "ray"

    def actors(self) -> list[psutil.Process]:
        """Those that run."""
        self.look()
        found = []
        for each in self.known.values():
            with contextlib.suppress(psutil.Error):
                if each.is_running() and "ChunkActor" in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def signal(self, number: signal.Signals) -> None:
        """To all of them."""
        self.look()
        for each in self.known.values():
            with contextlib.suppress(psutil.Error):
                each.send_signal(number)

    def end(self) -> None:
        """Kill what is left."""
        self.signal(signal.SIGKILL)
        self.process.wait()


def batch_command(given: argparse.Namespace, out: Path, chunk_rows: int) -> list[str]:
    """`igd batch` with two actors of one thread each."""
    files = ["--artifact", given.artifact, "--model", given.model, "--rows", given.rows, "--out", out]
    flags = ["--device", "cpu", "--actors", "2", "--chunk-rows", chunk_rows, "--json"]
    return [sys.executable, "-m", "igd_core", "batch", *map(str, [*files, *flags])]


def parts_in(out: Path) -> int:
    """Parts that are in their place."""
    return len(list((out / "recommendations").glob("part-*.parquet")))


def start(command: list[str], log: Path, **environment: str) -> Tree:
    """Run a command, its output in a file."""
    with log.open("ab") as to:
        return Tree(subprocess.Popen(command, stdout=to, stderr=to, env=_ENVIRONMENT | environment))


def wait_for_parts(tree: Tree, out: Path, parts: int) -> None:
    """Until so many are there, or the command has ended."""
    while parts_in(out) < parts and tree.process.poll() is None:
        tree.look()
        time.sleep(_LOOK_S)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """A batch that is killed twice."""
    out, log = given.out / "lists", given.out / "log"
    histories = histories_of(given.rows)
    parts = -(-len(histories) // given.chunk_rows)
    command = batch_command(given, out, given.chunk_rows)
    began = time.monotonic()
    first = start(command, log)
    wait_for_parts(first, out, parts // 4)
    victim = first.actors()[0]
    victim.kill()
    killed_at = parts_in(out)
    wait_for_parts(first, out, parts // 2)
    died = first.process.poll()
    first.process.kill()
    first.process.wait()
    at_driver = parts_in(out)
    first.look()
    second = start(command, log)
    wait_for_parts(second, out, parts + 1)
    second.process.wait()
    took = time.monotonic() - began
    first.end()
    second.end()
    lines = pq.read_table(out / "recommendations").to_pylist()
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "rows": len(histories),
        "actor_killed_at_part": killed_at,
        "driver_killed_at_part": at_driver,
        "driver_ended_before": died,
        "exit_code": second.process.returncode,
        "seconds": round(took),
        "rows_s": round(len(histories) / took, 2),
        "most_mib": {"first": first.most, "second": second.most},
        "memory_mib": [sampled(tree) for tree in (first, second)],
        "cpu_s": round(sum(first.cpu.values()) + sum(second.cpu.values())),
        "rejected": len(rejected),
        **counted(lines, rejected, len(histories)),
        **asyncio.run(compared(given, lines, histories)),
    }


def sampled(tree: Tree) -> list[dict[str, Any]]:
    """Ten looks at memory, evenly over the run."""
    every = max(1, len(tree.memory) // 10)
    start = tree.memory[0][0]
    return [
        {"s": round(at - start), "driver": now.get("driver", []), "actor": now.get("actor", [])}
        for at, now in tree.memory[::every]
    ]


def counted(lines: list[dict[str, Any]], rejected: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """Whether each row is there once: ranks from 1 to its number of items, or one line in the side file."""
    ranks: dict[tuple[str, int], list[int]] = {}
    for line in lines:
        ranks.setdefault((line["user_id"], line["row"]), []).append(line["rank"])
    wrong = [key for key, found in ranks.items() if sorted(found) != list(range(1, len(found) + 1))]
    once = Counter([*ranks, *((each["user_id"], each["row"]) for each in rejected)])
    expected = {(f"u{number}", number + 2) for number in range(rows)}
    return {
        "every_row_once": not wrong and set(once) == expected and max(once.values()) == 1,
        "wrong": wrong[:5],
        "lengths": dict(Counter(map(len, ranks.values()))),
    }


async def compared(
    given: argparse.Namespace, lines: list[dict[str, Any]], histories: list[list[str]]
) -> dict[str, Any]:
    """Lists of evenly spread rows beside those of an engine of this process."""
    found: dict[str, list[tuple[str, float]]] = {}
    for line in sorted(lines, key=lambda line: line["rank"]):
        found.setdefault(line["user_id"], []).append((line["item_id"], line["score"]))
    artifact = load_artifact(given.artifact)
    engine = open_engine(EngineOptions(model=given.model, device="cpu")).engine
    await engine.load(artifact)
    recommender, same, worst = Recommender(artifact, engine), 0, 0.0
    rows = range(0, len(histories), max(1, len(histories) // given.sample))[: given.sample]
    for row in rows:
        answer = await recommender.recommend(query_of(artifact, histories[row]))
        own = [(artifact.catalogue.item_ids[item.item], item.score) for item in answer.items]
        batch = found[f"u{row}"]
        same += [item for item, _ in own] == [item for item, _ in batch]
        worst = max([worst, *(abs(a - b) for (_, a), (_, b) in zip(own, batch, strict=False))])
    await engine.close()
    return {"compared": len(rows), "same_lists": same, "largest_difference": worst}


def query_of(artifact: Artifact, history: list[str]) -> Query:
    """As `igd recommend` asks: ten items, with what the artifact says."""
    found = [artifact.catalogue.index_of(item) for item in history]
    return Query(history=[item for item in found if item is not None], k=10)


def histories_of(rows: Path) -> list[list[str]]:
    """Of a csv with ``user_id`` (``u0``, ``u1``, ...) and ``history_item_ids``."""
    with rows.open(encoding="utf-8", newline="") as file:
        return [line["history_item_ids"].split() for line in csv.DictReader(file)]


def turns(given: argparse.Namespace) -> dict[str, Any]:
    """Three ways, each in its turn."""
    names = ("batch", "http", "loop")
    counts: dict[str, Any] = {}
    trees: dict[str, Tree] = {}
    url = f"http://127.0.0.1:{free_port()}"
    out = given.out / "turns"
    trees["batch"] = start(batch_command(given, out, 20), given.out / "turns.log")
    counts["batch"] = lambda: 20 * parts_in(out)
    serve = ["serve", "--port", url.rpartition(":")[2], "--store", "memory://", "--max-waiting", "64"]
    files = ["--artifact", str(given.artifact), "--model", str(given.model)]
    trees["http"] = start(
        [sys.executable, "-m", "igd_core", *serve, *files], given.out / "serve.log", IGD_LOG_LEVEL="error"
    )
    client = HTTPRows(url, histories_of(given.rows))
    counts["http"] = lambda: client.answered
    counter = given.out / "loop.count"
    counter.write_text("0")
    loop = [sys.executable, __file__, "loop", *files, "--rows", str(given.rows), "--out", str(given.out)]
    trees["loop"] = start(loop, given.out / "loop.log")
    counts["loop"] = lambda: int(counter.read_text() or 0)
    try:
        for name in names:  # each loads alone
            for other in names:
                trees[other].signal(signal.SIGCONT if other == name else signal.SIGSTOP)
            with client.asking() if name == "http" else contextlib.nullcontext():
                before = counts[name]()
                while counts[name]() < before + 20:
                    if trees[name].process.poll() is not None:
                        raise RuntimeError(f"{name} has ended: see its log in {given.out}")
                    time.sleep(0.2)
            trees[name].signal(signal.SIGSTOP)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        cpu: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(given.turns):
            for name in names:
                rate, used = turn(name, trees[name], counts[name], client, given.turn_s)
                seconds[name].append(rate)
                cpu[name].append(used)
                say({"way": name, "rows_s": round(rate, 2), "cpu_s_a_row": round(used, 3)})
        rates = {name: statistics.median(found) for name, found in seconds.items()}
        return {
            "rows_s": {name: round(rate, 2) for name, rate in rates.items()},
            "cpu_s_a_row": {name: round(statistics.median(found), 3) for name, found in cpu.items()},
            "batch_to_http": round(
                statistics.median(a / b for a, b in zip(seconds["batch"], seconds["http"], strict=True)), 2
            ),
            "batch_to_loop": round(
                statistics.median(a / b for a, b in zip(seconds["batch"], seconds["loop"], strict=True)), 2
            ),
            "most_mib": {name: tree.most for name, tree in trees.items()},
        }
    finally:
        for tree in trees.values():
            tree.end()


def turn(name: str, tree: Tree, count: Any, client: HTTPRows, seconds: float) -> tuple[float, float]:
    """Rows a second and CPU seconds a row of one way, while the others are stopped."""
    tree.signal(signal.SIGCONT)
    tree.look()
    rows, used, began = count(), sum(tree.cpu.values()), time.monotonic()
    with client.asking() if name == "http" else contextlib.nullcontext():
        time.sleep(seconds)
        tree.look()
        rows, used, took = count() - rows, sum(tree.cpu.values()) - used, time.monotonic() - began
    tree.signal(signal.SIGSTOP)
    return rows / took, used / max(rows, 1)


class HTTPRows:
    """Four clients that ask a server for rows, one after the other."""

    def __init__(self, url: str, histories: list[list[str]]) -> None:
        self.answered = 0
        self._url = url
        self._rows = iter(histories)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """They ask while the block runs."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(stop,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        yield
        stop.set()
        for thread in threads:
            thread.join()

    def _ask(self, stop: threading.Event) -> None:
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not stop.is_set():
                with self._lock:
                    history = next(self._rows)
                try:
                    answer = client.post("/v1/recommendations", json={"history": history, "timeout_ms": 60_000})
                except httpx.TransportError:  # it starts
                    time.sleep(0.5)
                    continue
                if answer.status_code == 503:
                    time.sleep(0.5)
                    continue
                answer.raise_for_status()
                assert answer.json()["source"] == "model", answer.text
                with self._lock:
                    self.answered += 1


async def loop(given: argparse.Namespace) -> None:
    """One engine, row after row; how many is in a file."""
    artifact = load_artifact(given.artifact)
    engine = open_engine(EngineOptions(model=given.model, device="cpu")).engine
    await engine.load(artifact)
    recommender, counter = Recommender(artifact, engine), given.out / "loop.count"
    for number, history in enumerate(histories_of(given.rows), start=1):
        await recommender.recommend(query_of(artifact, history))
        counter.write_text(str(number))


def say(result: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(result), flush=True)  # noqa: T201 - what it is for


def main() -> None:
    """Measure; the last line is the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "turns", "loop"))
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="csv with user_id (u0, u1, ...) and history_item_ids")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--chunk-rows", type=int, default=100)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--turn-s", type=float, default=30)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "loop":
        asyncio.run(loop(given))
        return
    say(run(given) if given.what == "run" else turns(given))


if __name__ == "__main__":
    main()
