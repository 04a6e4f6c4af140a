"""`igd bench`: what decoding costs beside the reference, and what a running server bears."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from igd_core.bench.names import DATASETS
from igd_core.checked_settings import Count, Flag, Listed, Share
from igd_core.cli.bench_flags import DecodingFlags
from igd_core.cli.bench_serve import add_serve_arguments
from igd_core.cli.bench_vllm import add_vllm_arguments
from igd_core.cli.flags import add_flags, read
from igd_core.engines.forward_choice import ForwardChoice, PrecisionChoice
from igd_core.engines.open import EngineName
from igd_core.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence


class DecodeFlags(DecodingFlags):
    """What `igd bench decode` measures."""

    device: str = Field(default="auto", description="auto, cpu, cuda")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16, float16")
    forward: ForwardChoice = Field(default="auto", description="how the embedded engine runs the model")
    precision: PrecisionChoice = Field(default="fp32", description="of the embedded engine's products on a CPU")
    histories: Count = Field(default=20, description="prompts a data set")
    forced_weight: Share = Field(default=1.0, description="0: titles by their decisions alone")
    engine: EngineName = Field(default="tree", description="what ours runs on")
    at_once: Annotated[Listed[Count], Flag(metavar="N,N")] = Field(
        default=(), description="ours alone, by so many people who ask at once: waiting, passes, what a pass holds"
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd bench`."""
    bench = subparsers.add_parser("bench", help="measure decoding, or a running server")
    kinds = bench.add_subparsers(required=True, metavar="WHAT")

    decode = kinds.add_parser("decode", help="reference, ours and floor, interleaved on the same prompts")
    add_flags(decode, DecodeFlags)
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
    asked = read(args, DecodeFlags)
    if asked.vllm and asked.engine != "vllm":
        raise InputError(f"vllm: given, with engine {asked.engine!r}")
    if asked.precision != "fp32" and asked.engine == "vllm":
        raise InputError(f"precision {asked.precision!r}: is the embedded engine's; vLLM has dtype, as bfloat16")
    if asked.at_once and asked.engine != "tree":
        raise InputError("at_once: measures the embedded engine; igd bench vllm has --concurrency")
    from igd_core.bench.at_once import bench_at_once
    from igd_core.bench.decode import BenchCheckpoints, DecodeSettings, bench_decode
    from igd_core.engines.embedded.checkpoint import in_precision, load_checkpoint
    from igd_core.engines.vllm.options import VLLMOptions

    on_vllm = VLLMOptions(model=asked.checkpoint(), dtype=asked.dtype, **asked.vllm)
    settings = DecodeSettings(
        video_games=asked.video_games,
        histories=asked.histories,
        beams=asked.beams,
        alpha=asked.alpha,
        forced_weight=asked.forced_weight,
        vllm=on_vllm if asked.engine == "vllm" else None,
    )
    datasets, device, dtype, forward = asked.data or DATASETS, asked.device, asked.dtype, asked.forward
    if asked.at_once:
        served = in_precision(
            load_checkpoint(asked.checkpoint(), device=device, dtype=dtype, forward=forward), asked.precision
        )
        results = bench_at_once(served, datasets, settings, asked.at_once)
    else:
        checkpoints = BenchCheckpoints.load(
            asked.checkpoint(), device=device, dtype=dtype, forward=forward, precision=asked.precision
        )
        results = bench_decode(checkpoints, datasets, settings)
    _print_results(results, as_json=args.json)
    return 0


def _print_results(results: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    for result in results:
        if as_json:
            print(json.dumps(result))
            continue
        for name, value in result.items():
            print(f"{name.replace('_', ' '):<20}{value}")
        print()
