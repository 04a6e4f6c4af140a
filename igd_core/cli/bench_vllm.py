"""`igd bench vllm`: our search in vLLM beside two others, and what our logits processor adds to a step."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from igd_core.bench.names import DATASETS
from igd_core.checked_settings import Count, Flag, Several
from igd_core.cli.bench_flags import DecodingFlags
from igd_core.cli.engine import Concurrency
from igd_core.cli.flags import add_flags, read

if TYPE_CHECKING:
    import argparse


class VLLMFlags(DecodingFlags):
    """What `igd bench vllm` measures."""

    histories: Count = Field(default=4, description="prompts, where fewer run at once")
    concurrency: Annotated[Several[Concurrency], Flag(metavar="N,N,...")] = Field(
        default=(1, 8, 32), description="recommendations at once, one measurement each"
    )


def add_vllm_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the parser of `igd bench vllm`."""
    add_flags(parser, VLLMFlags)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from igd_core.bench.vllm import VLLMBenchSettings, bench_vllm
    from igd_core.engines.vllm.engine import VLLMEngine
    from igd_core.engines.vllm.options import VLLMOptions

    asked = read(args, VLLMFlags)
    settings = VLLMBenchSettings(
        video_games=asked.video_games,
        histories=asked.histories,
        concurrency=asked.concurrency,
        beams=asked.beams,
        alpha=asked.alpha,
    )
    engine = VLLMEngine.start(VLLMOptions(model=asked.checkpoint(), **asked.vllm))
    with asyncio.Runner() as runner:
        try:
            for result in bench_vllm(runner, engine, asked.data or DATASETS, settings):
                print(json.dumps(result) if args.json else _readable(result), flush=True)
        finally:
            runner.run(engine.close())
    return 0


def _readable(result: dict[str, object]) -> str:
    return "\n".join(f"{name.replace('_', ' '):<20}{value}" for name, value in result.items()) + "\n"
