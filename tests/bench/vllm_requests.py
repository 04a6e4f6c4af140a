"""What a recommendation on vLLM costs outside the model: `python tests/bench/vllm_requests.py --against main`.

A random model of one layer with SmolLM2's vocabulary, ML-100K's catalogue and ten-item histories: nearly all that is
left is requests, messages, scheduling, our processors and the search. Compares this working tree with a commit of it:
each in processes of its own, which stop (SIGSTOP) while the other runs, turn by turn. On a CPU vLLM's processes wait
for one another by spinning; here they sleep between two looks, so that processor time counts work. Counts of requests,
steps, messages and bytes do not depend on the machine; seconds do, so compare medians within one run. Needs vLLM for
the CPU, Linux, and SmolLM2's tokenizer (`igd_core.models`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil

if TYPE_CHECKING:
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.search.normalisation import Normalise
    from igd_core.search.recommender import Recommender

HERE = Path(__file__).resolve().parents[2]
BEAMS = 10
# Python runs a `sitecustomize` that it finds before anything else, in vLLM's own processes too.
NO_SPINNING = "import os, time\nos.sched_yield = lambda: time.sleep(1e-4)\n"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One measurement of one tree; every field but the first three is a mean a recommendation.

    Attributes:
        normalise: ``children``, or ``vocabulary``: the paper's exact sum.
        at_once: recommendations at once.
        per_second: recommendations.
        wall_ms: at 1 at once, what one takes.
        server_cpu_ms: processor time of this process: the search, vLLM's front, messages.
        engine_cpu_ms: of vLLM's engine process: scheduling, messages.
        worker_cpu_ms: of vLLM's worker: the model, our processor, log-probabilities.
        rounds: of the search.
        tokens: that the model computed.
        steps: of the engine.
        sent: messages to the engine process, and ``sent_bytes`` their bytes.
        received: messages from it, and ``received_bytes`` their bytes.
    """

    normalise: str
    at_once: int
    per_second: float
    wall_ms: float
    server_cpu_ms: float
    engine_cpu_ms: float
    worker_cpu_ms: float
    rounds: float
    tokens: float
    steps: float
    sent: float
    sent_bytes: float
    received: float
    received_bytes: float


def make_model(directory: Path) -> Path:
    """One layer, 64 wide, heads 32 wide (the narrowest that vLLM has on a CPU), 49,152 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from igd_core.models import smollm2_dir

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    (directory / "sitecustomize.py").write_text(NO_SPINNING)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir() / name, directory / name)
    return directory


class Wire:
    """Counts the messages between this process and vLLM's engine process, at the sockets of its client."""

    def __init__(self, engine: VLLMEngine) -> None:
        self.counts = {"sent": 0, "sent_bytes": 0, "received": 0, "received_bytes": 0}
        client = engine.llm.engine_core
        send, decode = client.input_socket.send_multipart, client.decoder.decode

        def sent(frames: Any, **more: Any) -> Any:
            self._count("sent", frames)
            return send(frames, **more)

        def decoded(frames: Any) -> Any:
            self._count("received", frames)
            return decode(frames)

        client.input_socket.send_multipart = sent
        client.decoder.decode = decoded

    def _count(self, way: str, frames: Any) -> None:
        self.counts[way] += 1
        self.counts[f"{way}_bytes"] += sum(memoryview(frame).nbytes for frame in frames)


def cpu_seconds() -> dict[str, float]:
    """Processor time so far of this process and of vLLM's two."""
    times = {"server": 0.0, "engine": 0.0, "worker": 0.0}
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline())
            kind = "server" if process == me else "worker" if "Worker" in name else "engine"
            used = process.cpu_times()
            times[kind] += used.user + used.system
    return times


async def measure(recommender: Recommender, histories: Any, wire: Wire, normalise: Normalise, at_once: int) -> Leg:
    """All histories, ``at_once`` at a time, from an empty prefix cache."""
    from igd_core.bench.vllm import engine_steps
    from igd_core.search.query import Query

    room, engine = asyncio.Semaphore(at_once), cast("VLLMEngine", recommender.engine)
    rounds: list[int] = []
    tokens: list[int] = []

    async def one(history: Any) -> None:
        async with room:
            query = Query(history=history, k=BEAMS, beams=BEAMS, normalise=normalise, gamma=0.0, explain=False)
            found = await recommender.recommend(query)
            rounds.append(found.stats.rounds)
            tokens.append(found.stats.model_tokens)

    assert await engine.forget_prompts()
    before, steps, cpu, began = dict(wire.counts), engine_steps(), cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(one(history) for history in histories))
    seconds, count = time.perf_counter() - began, len(histories)
    cpu_ms = {f"{kind}_cpu_ms": 1e3 * (used - cpu[kind]) / count for kind, used in cpu_seconds().items()}
    return Leg(
        normalise=normalise,
        at_once=at_once,
        per_second=count / seconds,
        wall_ms=1e3 * seconds * at_once / count,
        rounds=statistics.fmean(rounds),
        tokens=statistics.fmean(tokens),
        steps=(engine_steps() - steps) / count,
        **cpu_ms,
        **{name: (value - before[name]) / count for name, value in wire.counts.items()},
    )


def child(model: Path, histories: int) -> None:
    """Start an engine of the tree that Python finds first, and answer lines of JSON."""
    from igd_core.bench.datasets import load_dataset
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.engines.vllm.options import VLLMOptions
    from igd_core.search.recommender import Recommender

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed is no answer
    with asyncio.Runner() as runner:
        engine = VLLMEngine.start(VLLMOptions(model=model, max_model_len=1024, max_num_seqs=256))
        data = load_dataset("ml-100k", histories=histories)
        artifact = data.artifact(engine.tokenizer)
        runner.run(engine.load(artifact))
        recommender, wire = Recommender(artifact, engine), Wire(engine)
        print("{}", file=answers)
        for line in sys.stdin:
            normalise, at_once = json.loads(line)
            leg = runner.run(measure(recommender, data.histories, wire, normalise, at_once))
            print(json.dumps(dataclasses.asdict(leg)), file=answers)
        runner.run(engine.close())


class Tree:
    """A tree of the code, running in processes that stand still unless they are asked."""

    def __init__(self, path: Path, model: Path, histories: int) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{path}:{path / 'server'}:{model}"}
        command = [sys.executable, __file__, "--child", str(model), "--histories", str(histories)]
        self._process = subprocess.Popen(
            command, env=environment, cwd=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()
        self._signal(signal.SIGSTOP)

    def run(self, normalise: str, at_once: int) -> Leg:
        """Measure one leg."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        print(json.dumps([normalise, at_once]), file=self._process.stdin, flush=True)
        found = Leg(**json.loads(self._read()))
        self._signal(signal.SIGSTOP)
        return found

    def close(self) -> None:
        """End the processes."""
        self._signal(signal.SIGCONT)
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a child process ended: {self._process.wait()}")
        return line

    def _signal(self, number: int) -> None:
        me = psutil.Process(self._process.pid)
        for process in (*me.children(recursive=True), me):
            process.send_signal(number)


def medians(legs: list[Leg]) -> dict[str, Any]:
    """Median of each number over the turns."""
    first = dataclasses.asdict(legs[0])
    return {
        name: value
        if name in ("normalise", "at_once")
        else round(statistics.median(getattr(leg, name) for leg in legs), 2)
        for name, value in first.items()
    }


def main() -> None:
    """Print one line of JSON for each tree, mode and number at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a commit to compare with; without it this tree alone")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--histories", type=int, default=32)
    parser.add_argument("--at-once", default="1,32")
    parser.add_argument("--normalise", default="children,vocabulary")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.histories)
        return
    sys.path[:0] = [str(HERE), str(HERE / "server")]
    sys.path.append(str(HERE / "tests"))
    from bench.commits import checked_out

    with contextlib.ExitStack() as stack:
        model = make_model(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="igd-one-layer-"))))
        paths = {"here": HERE}
        if given.against:
            paths[given.against] = stack.enter_context(checked_out(given.against))
        trees = {name: Tree(path, model, given.histories) for name, path in paths.items()}
        for tree in trees.values():
            stack.callback(tree.close)
        kinds = [(each, int(count)) for each in given.normalise.split(",") for count in given.at_once.split(",")]
        found: dict[tuple[str, str, int], list[Leg]] = {}
        for turn in range(-1, given.turns):  # the first is to warm up
            for kind in kinds:
                for name in sorted(trees, reverse=turn % 2 == 1):
                    leg = trees[name].run(*kind)
                    if turn >= 0:
                        found.setdefault((name, *kind), []).append(leg)
                    print(turn, name, dataclasses.asdict(leg), file=sys.stderr)  # noqa: T201
        for (name, *_), legs in found.items():
            print(json.dumps({"tree": name, **medians(legs)}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
