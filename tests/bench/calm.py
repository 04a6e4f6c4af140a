"""Calm under load: `python tests/bench/calm.py overload --json`, or `soak`, on Linux, with two cores.

The real server (`igd serve`) on ML-100K, its catalogue followed through a Redis on loopback. The server has a core of
its own; the load and Redis share another. The checkpoint is a random Llama of 3.5 million parameters, so that the
server is under test and not the model; `--model` takes another. No answer is given twice (`IGD_RESULT_TTL_S=0`), so
every recommendation goes through the model.

The capacity is found first (closed loop), twice: the first time fills caches. `overload`: then three times as many
requests a second arrive for `--warm-up` and for `--seconds`, whatever the answers do. `soak`: half the capacity, of
which a tenth records events and a third asks by user id, while the catalogue's pointer moves between two versions every
`--swap-every` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from bench.commits import ROOT, checked_out  # noqa: E402 - from tests/, by the line above
from redis_server import RedisServer, free_port  # noqa: E402 - likewise

from igd_core.artifact import BuildOptions, build_artifact, save_artifact  # noqa: E402
from igd_core.bench.http_pool import Target  # noqa: E402
from igd_core.bench.serve import ServeBench, bench_rate, find_capacity  # noqa: E402
from igd_core.bench.traffic import Mix, made_up_histories  # noqa: E402
from igd_core.catalogue.tokenization import TitleTokenizer  # noqa: E402
from igd_core.datasets.movielens import read_movielens  # noqa: E402
from igd_core.datasets.rows import item_frequency  # noqa: E402
from igd_core.models import smollm2_dir  # noqa: E402
from igd_core.store.open import StoreOptions, open_store  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SERVER_CORE, LOAD_CORE = 0, 1
CATALOGUE = "ml-100k"
START_S = 180.0


def make_small_model(directory: Path) -> Path:
    """A random Llama with SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir() / name, directory / name)
    return directory


def make_versions(directory: Path) -> list[Path]:
    """ML-100K twice: the versions differ in their default alpha."""
    movielens = read_movielens()
    catalogue = movielens.catalogue.with_frequency(item_frequency(movielens.interactions, movielens.catalogue))
    tokenizer = TitleTokenizer.from_directory(smollm2_dir())
    made = []
    for alpha in (0.2, 0.3):
        made.append(directory / f"alpha-{alpha}")
        save_artifact(build_artifact(catalogue, tokenizer, BuildOptions(name=CATALOGUE, alpha=alpha)), made[-1])
    return made


class Swaps:
    """Moves the catalogue's pointer between its versions, again and again, in a thread of its own."""

    def __init__(self, url: str, versions: list[str], every_s: float) -> None:
        self._url, self._versions, self._every_s = url, versions, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._ended.wait(self._every_s):
            number += 1
            asyncio.run(self._activate(self._versions[number % len(self._versions)]))

    async def _activate(self, version: str) -> None:
        store = open_store(self._url, options=StoreOptions(timeout_s=5.0))
        await store.activate(CATALOGUE, version)
        await store.close()


async def publish(url: str, directories: list[Path]) -> list[str]:
    """Add all, point to the first."""
    store = open_store(url, options=StoreOptions(timeout_s=5.0))
    versions = [await store.add(directory, catalogue=CATALOGUE) for directory in directories]
    await store.activate(CATALOGUE, versions[0])
    await store.close()
    return versions


def wait_until_ready(target: Target, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server is."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"http://{target.host}:{target.port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the server was not ready:\n{log.read_text(errors='replace')[-2000:]}")


def own_metrics(target: Target) -> dict[str, float]:
    """What the server counts of itself, by metric and labels, where it is not 0."""
    text = httpx.get(f"http://{target.host}:{target.port}/metrics").text
    wanted = (
        "igd_catalogue_",
        "igd_background",
        "igd_prefix_cache_",
        "igd_recommendations_total",
        "igd_rejected",
        "process_open_fds",
    )
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(wanted) and "_bucket" not in line]
    return {name: float(value) for name, value in rows if float(value)}


def measure(args: argparse.Namespace, target: Target, swaps: Swaps) -> Mapping[str, Any]:
    """The capacity, and then the load."""
    deadline_s = args.timeout_ms / 1000
    metrics = Target.of(f"http://{target.host}:{target.port}/metrics")
    body = {"k": 10, "timeout_ms": args.timeout_ms}
    histories = made_up_histories(args.versions[0], seed=0)
    plain = ServeBench(target=target, histories=histories, mix=Mix(body=body), deadline_s=deadline_s, seconds=args.step)
    find_capacity(plain)
    capacity = find_capacity(plain)
    mix = Mix(body=body, events=0.1, users=0.3) if args.what == "soak" else Mix(body=body)
    factor = 0.5 if args.what == "soak" else 3.0
    bench = ServeBench(
        target=target, histories=histories, mix=mix, deadline_s=deadline_s, seconds=args.seconds, metrics=metrics
    )
    rate = factor * capacity["capacity_per_s"]
    with swaps if args.what == "soak" else contextlib.nullcontext():
        if args.warm_up:  # caches fill: of prompts, and of kernels for every number of tokens that a pass has had
            bench_rate(dataclasses.replace(bench, seconds=args.warm_up), rate=rate, even=False)
        report = bench_rate(bench, rate=rate, even=False).report
    return {"capacity": capacity, "load": report, "metrics": own_metrics(target)}


def run(args: argparse.Namespace, directory: Path) -> Mapping[str, Any]:
    """Start Redis and the server, measure, stop them."""
    model = args.model.resolve() if args.model else make_small_model(directory / "model")
    args.versions = make_versions(directory)
    os.sched_setaffinity(0, {LOAD_CORE})
    target = Target.of(f"http://127.0.0.1:{free_port()}")
    log = directory / "server.log"
    with RedisServer(directory) as redis, log.open("wb") as stream:
        versions = asyncio.run(publish(redis.url, args.versions))
        command = [sys.executable, "-m", "igd_core", "serve", "--port", str(target.port), "--model", str(model)]
        command += ["--catalogues", CATALOGUE, "--store", redis.url, "--log-level", "warning", *args.serve]
        variables = {"IGD_CACHE_DIR": str(directory / "cache"), "IGD_RESULT_TTL_S": "0", "IGD_LOCAL_RESULTS": "0"}
        variables["PYTHONPATH"] = os.pathsep.join(str(args.code / folder) for folder in ("", "server"))
        server = subprocess.Popen(
            ["taskset", "--cpu-list", str(SERVER_CORE), *command],
            stderr=stream,
            cwd=args.code,  # comes first in the path, with -m
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        )
        try:
            wait_until_ready(target, server, log)
            return measure(args, target, Swaps(redis.url, versions, args.swap_every))
        finally:
            server.terminate()
            server.wait()
            if args.log is not None:
                args.log.write_bytes(log.read_bytes())


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """For people."""
    load, capacity = result["load"], result["capacity"]["capacity_per_s"]
    memory = load["server_memory_bytes"]
    yield f"capacity       {capacity:.1f} good answers a second, {result['capacity']['concurrency']} at once"
    yield f"load           {load['rate_per_s']:.1f} a second for {load['seconds']:.0f} s: {load['requests']} requests"
    yield f"goodput        {load['goodput_per_s']:.1f} a second, {load['goodput_per_s'] / capacity:.0%} of the capacity"
    yield f"accepted, ms   {load['latency_ms']['accepted']}; the deadline is {load['deadline_ms']:.0f}"
    yield f"answers        {load['answers']} {load['reasons']}"
    yield f"memory         {memory['end'] / memory['warm'] - 1:+.1%} from a tenth of the run to its end"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="Flags behind -- are for `igd serve`."
    )
    parser.add_argument("what", choices=["overload", "soak"])
    parser.add_argument("--seconds", type=float, default=300.0, help="default: %(default)s")
    parser.add_argument("--step", type=float, default=10.0, help="seconds of a step of the search for the capacity")
    parser.add_argument(
        "--warm-up", type=float, default=300.0, metavar="S", help="the same load, before; default: %(default)s"
    )
    parser.add_argument("--timeout-ms", type=int, default=2000, help="deadline of a request; default: %(default)s")
    parser.add_argument("--swap-every", type=float, default=60.0, metavar="S", help="soak; default: %(default)s")
    parser.add_argument("--model", type=Path, help="a checkpoint; default: a random one of 3.5 million parameters")
    parser.add_argument("--commit", help="serve the code of this commit, not of this tree")
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    parser.add_argument("--json", action="store_true")
    # By hand: argparse has given all positional places away when it comes to --.
    words = [*sys.argv[1:], "--"]
    args = parser.parse_args(words[: words.index("--")])
    args.serve = words[words.index("--") + 1 : -1]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        args.code = stack.enter_context(checked_out(args.commit)) if args.commit else ROOT
        result = run(args, Path(directory))
    print(json.dumps(result) if args.json else "\n".join(lines(result)))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
