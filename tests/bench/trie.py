"""What a catalogue costs to build, keep, load and score with: `python tests/bench/trie.py --help`.

Beside it what one would otherwise take (`bench.rivals`). Every measurement runs in a fresh process, so that no peak
hides behind an earlier one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from bench.isolation import Limits, run_apart  # noqa: E402 - from tests/, by the line above

from igd_core.bench.names import VIDEO_GAMES_DIR  # noqa: E402
from igd_core.errors import IGDError  # noqa: E402
from igd_core.models import smollm2_dir  # noqa: E402
from igd_core.ranges import Real, Several, Whole  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIZES = (10_000, 100_000, 1_000_000)
RIVALS = ("transformers", "llguidance", "xgrammar-text", "xgrammar-token")

_OWN_LIMITS = Limits(seconds=1800.0, memory_mib=16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrieBench:
    """What `bench_trie` measures with.

    Attributes:
        tokenizer_dir: a checkpoint's directory; only its tokenizer is read.
        items: an items file whose titles are recombined; None for MovieLens-100K.
        rivals: names, of `RIVALS`.
        limits: time and memory of one rival at one size.
        threads: of torch and of the libraries.
        seed: of titles, logits and prefixes.
        device: where the score kernel's logits are.
        kernel_s: for which the score kernel is timed at each number of rows; at least nine rounds.
    """

    tokenizer_dir: Path
    items: Path | None = None
    rivals: Sequence[str] = RIVALS
    limits: Limits = field(default_factory=Limits)
    threads: int = 2
    seed: int = 0
    device: str = "cpu"
    kernel_s: float = 6.0


# Rows of a mask batch (10 beams) and of the score kernel; prefixes per rival.
_BEAMS = 10
_KERNEL_ROWS = (10, 100, 1000)
_PROBES = 60


def bench_trie(setup: TrieBench, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Measure each size in turn.

    Returns:
        One JSON-serialisable object per size, with units in the names: ``items``, ``tokens_per_path``, ``tokenise``,
        ``build``, ``artifact``, ``load`` (what `prepare`, `measure_build` and `measure_load` report), ``kernel`` (a
        list, see `measure_kernel`) and ``rivals`` (a list, see `measure_rival`; ``failure`` is None, or says why there
        is no result).

    Raises:
        IGDError: one of our own measurements failed; the message is that process's last line.
    """
    results = []
    gave_up: dict[str, int] = {}
    with tqdm(total=len(sizes) * (4 + len(setup.rivals)), file=sys.stderr, unit="step") as progress:
        for n in sizes:
            with tempfile.TemporaryDirectory(prefix="igd-bench-trie-") as scratch:
                result = _bench_ours(setup, n, Path(scratch), progress)
                result["rivals"] = []
                for name in setup.rivals:
                    progress.set_description(f"{n:,} items: {name}")
                    measured = _bench_rival(setup, name, Path(scratch), gave_up.get(name))
                    if "build_s" not in measured:
                        gave_up.setdefault(name, n)
                    result["rivals"].append(measured)
                    progress.update()
            results.append(result)
    return results


def _bench_ours(setup: TrieBench, n: int, scratch: Path, progress: tqdm[Any]) -> dict[str, Any]:
    places = {"workload": str(scratch / "workload"), "artifact": str(scratch / "artifact")}
    shared = {**places, "threads": setup.threads, "seed": setup.seed}
    source = {"items": str(setup.items) if setup.items else None, "tokenizer_dir": str(setup.tokenizer_dir), "n": n}
    vocab_size = 0
    result: dict[str, Any] = {"items": n, "threads": setup.threads}
    for label, task, arguments in (
        ("tokenise, build and save", "bench.trie_tasks:prepare", source),
        ("build", "bench.trie_tasks:measure_build", {}),
        ("load", "bench.trie_tasks:measure_load", {}),
        (
            "score kernel",
            "bench.timing:measure_kernel",
            {"rows": list(_KERNEL_ROWS), "device": setup.device, "seconds": setup.kernel_s},
        ),
    ):
        progress.set_description(f"{n:,} items: {label}")
        outcome = run_apart(task, {**shared, **arguments, "vocab_size": vocab_size}, _OWN_LIMITS)
        if outcome.failure is not None:
            raise IGDError(f"{label}, {n} items: {outcome.failure}")
        result.update(outcome.values)
        vocab_size = result["vocab_size"]
        progress.update()
    return result


def _bench_rival(setup: TrieBench, name: str, scratch: Path, gave_up: int | None) -> dict[str, Any]:
    if gave_up is not None:
        return {"name": name, "failure": f"not tried: none at {gave_up} items"}
    arguments = {
        "workload": str(scratch / "workload"),
        "rival": name,
        "rows": _BEAMS,
        "probes": _PROBES,
        "seconds": setup.limits.seconds / 4,
        "threads": setup.threads,
        "seed": setup.seed,
    }
    outcome = run_apart("bench.timing:measure_rival", arguments, setup.limits)
    return {"name": name, **outcome.values, "failure": outcome.failure}


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """Results as plain text for people."""
    lines = []
    for result in results:
        build, artifact, load = result["build"], result["artifact"], result["load"]
        header = f"{result['items']:,} items, {result['tokens_per_path']:.1f} tokens a path, {build['nodes']:,} nodes"
        memory = f"peak {build['peak_mib']:,.0f} MiB, {build['grown_mib']:,.0f} MiB over imports"
        lines += [
            f"{header}, {result['threads']} threads",
            f"  tokenise           {result['tokenise']['seconds']:9.2f} s    (apart)",
            f"  trie and IG        {build['seconds']:9.2f} s    {memory}",
            f"  artifact           {artifact['bytes_per_item']:9.1f} bytes an item",
            f"  load               {load['verified_s']:9.3f} s    {load['unverified_s']:.3f} s unverified",
        ]
        lines += [
            f"  kernel {row['rows']:>5} rows  {row['child_scores_us']:9.0f} us   {row['child_scores_ratio']:.2f} of a "
            f"log-softmax ({row['log_softmax_us']:.0f} us); in place {row['constrain_logits_us']:.0f} us"
            for row in result["kernel"]
        ]
        lines.append(f"  {'rival':<16}{'build s':>9}{'MiB':>8}{'us/row':>10}{'us/10 rows':>12}{'again':>10}  allows")
        lines += [_rival_line(rival) for rival in result["rivals"]]
    return "\n".join(lines)


def _rival_line(rival: Mapping[str, Any]) -> str:
    line = f"  {rival['name']:<16}"
    if "build_s" in rival:
        line += f"{rival['build_s']:>9.2f}{rival['build_mib']:>8,.0f}"
    if "row_us" in rival:
        line += f"{rival['row_us'][0]:>10,.0f}{rival['batch_us'][0]:>12,.0f}{rival['batch_again_us'][0]:>10,.0f}"
        exact = not (rival["rows_with_barred"] or rival["rows_with_foreign"])
        off = f"other tokens in {rival['rows_with_foreign']} of {rival['checked_rows']} rows"
        line += "  the token paths" if exact else f"  {off}"
    return line if rival["failure"] is None else f"{line}  {rival['failure']}"


def _setup(args: argparse.Namespace) -> TrieBench:
    from igd_core.engines.embedded.checkpoint import device_of

    items = args.items or (VIDEO_GAMES_DIR / "items.csv" if (VIDEO_GAMES_DIR / "items.csv").is_file() else None)
    return TrieBench(
        tokenizer_dir=args.tokenizer or smollm2_dir(),
        items=items,
        rivals=tuple(name for name in args.rivals.split(",") if name not in ("", "none")),
        limits=Limits() if args.limit is None else Limits(seconds=args.limit),
        device=str(device_of(args.device)),
    )


def main() -> None:
    """Measure each size and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--sizes", type=Several(Whole("sizes", least=1)), default=list(SIZES), metavar="N,N,...", help="of catalogues"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: SmolLM2's")
    parser.add_argument(
        "--items", type=Path, metavar="FILE", help="titles to recombine (default: Video Games or ML-100K)"
    )
    parser.add_argument("--rivals", default=",".join(RIVALS), metavar="NAME,...", help="or none (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the score kernel's logits are (default: %(default)s)")
    parser.add_argument(
        "--limit", type=Real("limit", above=True, most=1e6), metavar="SECONDS", help="for one rival at one size"
    )
    parser.add_argument("--json", action="store_true", help="one object a line for each size")
    args = parser.parse_args()
    try:
        setup = _setup(args)
        if unknown := set(setup.rivals) - set(RIVALS):
            parser.error(f"rivals: {', '.join(sorted(unknown))}; known are {', '.join(RIVALS)}")
        results = bench_trie(setup, args.sizes)
    except IGDError as error:
        parser.error(str(error))
    text = "\n".join(map(json.dumps, results)) if args.json else render(results)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
