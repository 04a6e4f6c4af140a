"""The queue of runs that want a GPU, the most valuable first: what `tests/device/all.py` runs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable,)
IGD = (sys.executable, "-m", "igd_core")

# Under the script's folder for what runs make and need.
ITEMS, TRAIN, VALID, TEST = (f"ml/{name}.csv" for name in ("items", "train", "valid", "test"))
ARTIFACT = "art"
MODEL = "{model}"

_ROUND_OF_TESTS = ("-W", "ignore:Unclosed context:ResourceWarning", "-o", "addopts=", "-p", "no:cacheprovider")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-rfE", "--timeout", "120", *_ROUND_OF_TESTS)
OWN_TESTS = (
    *("tests/unit/engines/test_pooled_llama.py", "tests/unit/engines/test_llama.py"),
    *("tests/contract/test_engine_exact.py", "tests/contract/test_engine.py"),
)
VLLM_TESTS = ("tests/unit/engines/test_vllm_processors.py", "tests/integration/test_vllm_engine.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the queue.

    Attributes:
        name: what `--only` and the results call it.
        what: it tells.
        seconds: its limit.
        least: seconds below which it is not begun, since it would bring nothing.
        command: words, in the repository's root. ``{work}`` stands for the folder of files, ``{fresh}`` for one
            that is not there yet, ``{out}`` for that of results, ``{model}`` for SmolLM2's.
        dry: words added to the command for a dry run: the smallest sizes, on whatever is there.
        environment: variables, beside those of all runs.
        modules: what must be installed.
        model: whether it takes SmolLM2.
        gpus: cards that it cannot do without; of 0 it may be tried on a CPU.
        commit: of this repository's history.
        alone: whether it measures, so that nothing may run beside it.
        after: the run that makes its files.
    """

    name: str
    what: str
    seconds: int
    least: int
    command: tuple[str, ...]
    dry: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    model: bool = False
    gpus: int = 0
    commit: str | None = None
    alone: bool = True
    after: str | None = None


def _vllm_tests(**options: object) -> tuple[tuple[str, str], ...]:
    """Options of every engine; a fixed cache lets vLLM start while others take and free the card's memory."""
    return (("TEST_VLLM_OPTIONS", json.dumps({"gpu_memory": 0.1, "kv_cache_bytes": 1 << 30, **options})),)


_BENCH_DRY = ("--histories", "1", "--concurrency", "1")
_FP32: dict[str, object] = {"dtype": "float32", "block_size": 32}
_BF16 = (("TEST_VLLM_TOLERANCE", "0.4"),)
_TUNE = (
    *(*IGD, "tune", "--artifact", f"{{work}}/{ARTIFACT}", "--model", MODEL),
    *("--train", f"{{work}}/{TRAIN}", "--valid", f"{{work}}/{VALID}", "--epochs", "1"),
    *("--train-rows", "2048", "--valid-rows", "256", "--precision", "bf16", "--json"),
)
_TUNE_DRY = ("--train-rows", "8", "--valid-rows", "4", "--precision", "fp32")
_SERVE = ("--artifact", f"{{work}}/{ARTIFACT}", "--model", MODEL)
_HTTP = "tests/device/http_load.py"
_SHAPES = "tests/bench/shapes.py"
_SHAPES_DRY = ("--shape", "tiny", "--at-once", "1", "--seconds", "0.1", "--brief")
_FOR_VLLM_TESTS = ("vllm", "pytest_asyncio", "pytest_timeout", "hypothesis")


def _bench_vllm(runner: str) -> Run:
    return Run(
        name=f"bench-{runner}",
        what=f"eight and 32 at once on {runner.upper()}: throughput, steps",
        seconds=200,
        least=150,
        command=(
            *(
                *IGD,
                "bench",
                "vllm",
                "--model",
                MODEL,
                "--data",
                "ml-100k",
                "--histories",
                "8",
                "--concurrency",
                "8,32",
            ),
            *("--vllm", json.dumps({"runner": runner, "max_model_len": 1024}), "--json"),
        ),
        dry=_BENCH_DRY,
        modules=("vllm", "recbole"),
        model=True,
        gpus=int(runner == "v2"),
    )


def _tune(name: str, what: str, seconds: int, *flags: str, launcher: tuple[str, ...] = (), gpus: int = 0) -> Run:
    command = (*launcher, *_TUNE[1:]) if launcher else _TUNE
    return Run(
        name=name,
        what=what,
        seconds=seconds,
        least=60,
        command=(*command, *flags, "--out", "{fresh}"),
        dry=_TUNE_DRY,
        modules=("peft",),
        model=True,
        gpus=gpus,
        after="files",
    )


_TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")

RUNS: tuple[Run, ...] = (
    Run(
        name="files",
        what="MovieLens-100K prepared and built, for the runs that serve and tune",
        seconds=90,
        least=20,
        command=(*PYTHON, "tests/device/movielens_files.py", "{work}", MODEL),
        modules=("recbole",),
        model=True,
    ),
    Run(
        name="tests-own",
        what="our forward on the card, in graphs and kernel by kernel, against transformers' modules and `generate`",
        seconds=150,
        least=60,
        command=(*PYTEST, *OWN_TESTS, "-k", "pooled or cuda or gpu"),
        dry=("-k", "gives_its_slots"),
        modules=("pytest_asyncio", "pytest_timeout", "hypothesis"),
        alone=False,
    ),
    Run(
        name="passes",
        what="one pass by transformers' modules and by our forward: 1 to 270 tokens, and a whole recommendation",
        seconds=60,
        least=30,
        command=(*PYTHON, "tests/bench/passes.py", "--model", MODEL, "--json"),
        dry=("--widths", "1", "--repeats", "1"),
        model=True,
    ),
    Run(
        name="at-once",
        what="recommendations at 1, 8 and 32 at once: each alone in a pass, shared passes, transformers' modules",
        seconds=150,
        least=60,
        command=(
            *(*PYTHON, "tests/bench/at_once.py", "--model", MODEL, "--device", "auto", "--histories", "64"),
            *("--at-once", "1", "8", "32", "--repeats", "3", "--ways", "alone", "transformers", "--json"),
        ),
        dry=("--histories", "2", "--at-once", "1", "--repeats", "1"),
        modules=("recbole",),
        model=True,
    ),
    Run(
        name="losses",
        what="SmolLM2 over children and over the vocabulary, three seeds: lists of the model alone, and served",
        seconds=560,
        least=420,
        command=(*PYTHON, "tests/device/losses.py", "{work}", MODEL, "--out", "{out}"),
        dry=(
            *("--seeds", "0", "--train-rows", "4", "--valid-rows", "2", "--test-rows", "2"),
            *("--precision", "fp32", "--at-once", "1"),
        ),
        modules=("recbole",),
        model=True,
    ),
    _bench_vllm("v1"),
    _bench_vllm("v2"),
    Run(
        name="http-vllm",
        what="HTTP with vLLM: capacity, three times that",
        seconds=240,
        least=180,
        command=(
            *(*PYTHON, _HTTP, "--", *_SERVE, "--engine", "vllm"),
            *("--vllm", json.dumps({"max_model_len": 1024, "max_num_seqs": 512})),
        ),
        modules=("vllm",),
        model=True,
        after="files",
    ),
    Run(
        name="http-tree",
        what="HTTP with the embedded engine: capacity, three times that",
        seconds=120,
        least=60,
        command=(*PYTHON, _HTTP, "--running", "8", "--", *_SERVE),
        model=True,
        after="files",
    ),
    Run(
        name="http-tree-4",
        what="the same with four replicas on the card: beside the model a process is bound by one core",
        seconds=150,
        least=90,
        command=(
            *(*PYTHON, _HTTP, "--running", "8", "--", *_SERVE),
            *("--replicas", "4", "--operations-port", "9321", "--store", "file://{fresh}"),
        ),
        model=True,
        after="files",
    ),
    Run(
        name="shapes",
        what="shapes of 135M and 1.5B with random weights, embedded: 1 to 128 at once, longer prompts, wider searches",
        seconds=240,
        least=90,
        command=(*PYTHON, _SHAPES, "--shape", "smollm2-135m", "qwen2.5-1.5b"),
        dry=_SHAPES_DRY,
        modules=("recbole",),
        model=True,
    ),
    Run(
        name="shapes-vllm",
        what="the same on vLLM",
        seconds=300,
        least=150,
        command=(
            *(*PYTHON, _SHAPES, "--shape", "smollm2-135m", "qwen2.5-1.5b", "--engine", "vllm"),
            *("--vllm", json.dumps({"max_model_len": 2048, "max_num_seqs": 512})),
        ),
        dry=_SHAPES_DRY,
        modules=("vllm", "recbole"),
        model=True,
    ),
    Run(
        name="shapes-large",
        what="shapes of 1.7B and 8B, embedded, ten beams: 1 to 128 at once",
        seconds=240,
        least=120,
        command=(*PYTHON, _SHAPES, "--shape", "qwen3-1.7b", "llama-3-8b", "--brief"),
        dry=_SHAPES_DRY,
        modules=("recbole",),
        model=True,
        gpus=1,
    ),
    Run(
        name="decode",
        what="the embedded engine alone, against `generate`",
        seconds=90,
        least=45,
        command=(
            *(*IGD, "bench", "decode", "--model", MODEL, "--device", "auto", "--dtype", "float32"),
            *("--data", "ml-100k", "--histories", "8", "--alpha", "0.2", "--json"),
        ),
        dry=("--histories", "1"),
        modules=("recbole",),
        model=True,
    ),
    Run(
        name="tests-bf16-v1",
        what="our tests in bf16 on V1, compiled: rankings may differ, say which",
        seconds=200,
        least=120,
        command=(*PYTEST, *VLLM_TESTS),
        dry=("-k", "processors or items_and_scores"),
        environment=(*_BF16, *_vllm_tests(runner="v1")),
        modules=_FOR_VLLM_TESTS,
        alone=False,
    ),
    Run(
        name="tests-bf16-v2",
        what="our tests in bf16 on V2, compiled: rankings may differ, say which",
        seconds=200,
        least=120,
        command=(*PYTEST, *VLLM_TESTS),
        environment=(*_BF16, *_vllm_tests(runner="v2")),
        modules=_FOR_VLLM_TESTS,
        gpus=1,
        alone=False,
    ),
    Run(
        name="tests-adapters",
        what="LoRA on CUDA, adapters that join later too, and the tests left out so far, in fp32",
        seconds=240,
        least=120,
        command=(*PYTEST, VLLM_TESTS[1], "-k", "adapter or memory_flat or narrow"),
        dry=("-k", "published_adapter_joins"),
        environment=_vllm_tests(**_FP32, compiled=False),
        modules=(*_FOR_VLLM_TESTS, "peft"),
        alone=False,
    ),
    Run(
        name="tests-fp32-compiled",
        what="our tests in fp32 on V1, compiled",
        seconds=240,
        least=120,
        command=(*PYTEST, VLLM_TESTS[1]),
        dry=("-k", "items_and_scores"),
        environment=_vllm_tests(**_FP32, compiled=True),
        modules=(*_FOR_VLLM_TESTS, "peft"),
        alone=False,
    ),
    Run(
        name="tests-tuning",
        what="tuning and scores over children, the prior, against `generate`",
        seconds=300,
        least=60,
        command=(
            *PYTEST,
            "tests/unit/tuning",
            "tests/integration/test_tuning.py",
            "tests/contract/test_engine_exact.py",
        ),
        dry=("-k", "loss"),
        modules=("pytest_asyncio", "pytest_timeout", "hypothesis", "peft"),
        alone=False,
    ),
    Run(
        name="requests",
        what="what a recommendation costs outside the model, now and before a round was one message",
        seconds=300,
        least=150,
        command=(*PYTHON, "tests/bench/vllm_requests.py", "--against", "4af8666e"),
        dry=("--turns", "1", "--histories", "2", "--at-once", "1"),
        modules=("vllm", "recbole"),
        model=True,
        commit="4af8666e",
    ),
    Run(
        name="batch",
        what="`igd batch`: an actor with vLLM on the card",
        seconds=200,
        least=150,
        command=(
            *(*IGD, "batch", *_SERVE, "--rows", f"{{work}}/{TEST}", "--out", "{fresh}", "--actors", "1"),
            *("--engine", "vllm", "--vllm", json.dumps({"max_model_len": 1024}), "--gpus", "1", "--json"),
        ),
        dry=("--gpus", "0"),
        modules=("vllm", "ray"),
        model=True,
        after="files",
    ),
    _tune("tune-one", "tuning on one GPU, for the next four to compare with", 90, "--devices", "1"),
    _tune("tune-nccl", "NCCL with one card: a launcher's single process", 90, launcher=_TORCHRUN),
    _tune("tune-fsdp", "FSDP2 with one card: the same, split", 90, "--shard", launcher=_TORCHRUN),
    _tune("tune-two", "tuning on two GPUs: the losses of one", 90, "--devices", "2", gpus=2),
    _tune("tune-split", "tuning split between two GPUs: the losses of one", 120, "--devices", "2", "--shard", gpus=2),
)
