"""`igd bench serve`: its flags, and its results as text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.cli.numbers import Real, Whole, alpha, beams, seed, wanted
from igd_core.cli.reading import add_reading_arguments, reading_of
from igd_core.datasets.sources import opened
from igd_core.errors import InputError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from igd_core.bench.serve import ServeBench
    from igd_core.bench.traffic import Mix, UserHistory

DEFAULT_URL = "http://127.0.0.1:8000"
_DEFAULT_SECONDS = 30.0
_DEFAULT_STEP_SECONDS = 5.0


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Every flag of `igd bench serve`."""
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", type=Real("rate", above=True), metavar="N", help="requests a second")
    load.add_argument("--find-capacity", action="store_true", help="the most good answers a second")
    parser.add_argument("--url", default=DEFAULT_URL, help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=Real("seconds", above=True),
        metavar="S",
        help="length of the run (default: 30), or of each step (default: 5)",
    )
    parser.add_argument("--even", action="store_true", help="arrivals evenly spaced (default: a Poisson process)")
    users = parser.add_mutually_exclusive_group(required=True)
    users.add_argument("--histories", type=Path, metavar="FILE", help="rows as `igd data prepare` writes them")
    users.add_argument("--artifact", type=Path, metavar="DIR", help="make histories up, by its items' popularity")
    parser.add_argument("--catalogue", metavar="NAME", help="ask for this one (default: the server's default)")
    parser.add_argument("--k", type=wanted(), metavar="N", help="items wanted (default: the server's)")
    parser.add_argument("--beams", type=beams(), metavar="N")
    parser.add_argument("--alpha", type=alpha(), metavar="A")
    parser.add_argument(
        "--timeout-ms",
        type=Whole("timeout_ms", least=1),
        default=10_000,
        metavar="MS",
        help="deadline of each request (default: %(default)s)",
    )
    parser.add_argument("--no-fallback", action="store_true", help="want an error rather than popularity")
    parser.add_argument(
        "--events", type=Real("events", most=1.0), default=0.0, metavar="SHARE", help="of requests that record an event"
    )
    parser.add_argument(
        "--users", type=Real("users", most=1.0), default=0.0, metavar="SHARE", help="asked by user_id, not by history"
    )
    parser.add_argument(
        "--repeats",
        type=Real("repeats", most=1.0),
        default=0.0,
        metavar="SHARE",
        help="asked before, so perhaps cached",
    )
    parser.add_argument("--key", action="append", default=[], metavar="KEY|@FILE", help="repeatable; used in turn")
    parser.add_argument(
        "--connections",
        type=Whole("connections", least=1, most=10_000),
        default=512,
        metavar="N",
        help="at most (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed(), default=0)
    parser.add_argument("--metrics", metavar="URL", help="as http://127.0.0.1:8000/metrics: watch the server's memory")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    add_reading_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the server, print, draw."""
    from igd_core.bench.serve import bench_rate, find_capacity

    if args.find_capacity and args.plot:
        raise InputError("plot: only a run at a --rate is drawn")
    bench = _bench(args)
    if not bench.target.is_loopback:
        print(f"igd: this puts load on {bench.target.host}, which is not this machine", file=sys.stderr)
    if args.find_capacity:
        found = find_capacity(bench)
        print(json.dumps(found) if args.json else _capacity_text(found))
        return 0
    result = bench_rate(bench, rate=args.rate, even=args.even)
    print(json.dumps(result.report) if args.json else _rate_text(result.report))
    if args.plot:
        from igd_core.bench.serve_plot import draw_serve

        draw_serve(result, args.plot)
    return 0


def _bench(args: argparse.Namespace) -> ServeBench:
    from igd_core.bench.http_pool import Target
    from igd_core.bench.serve import ServeBench
    from igd_core.bench.traffic import made_up_histories

    target = Target.of(args.url)
    mix = _mix(args)
    histories = _histories(args) if args.histories is not None else made_up_histories(args.artifact, seed=args.seed)
    default_seconds = _DEFAULT_STEP_SECONDS if args.find_capacity else _DEFAULT_SECONDS
    return ServeBench(
        target=target,
        histories=histories,
        mix=mix,
        deadline_s=args.timeout_ms / 1000,
        seconds=default_seconds if args.seconds is None else args.seconds,
        connections=args.connections,
        seed=args.seed,
        metrics=None if args.metrics is None else Target.of(args.metrics),
    )


def _histories(args: argparse.Namespace) -> list[UserHistory]:
    from igd_core.bench.traffic import read_histories

    with opened([args.histories]) as (file,):
        return read_histories(file, reading_of(args))


def _mix(args: argparse.Namespace) -> Mix:
    from igd_core.bench.traffic import Mix

    body: dict[str, Any] = {"timeout_ms": args.timeout_ms}
    given = ("catalogue", "k", "beams", "alpha")  # the server's k fits a catalogue of fewer than ten items
    body |= {name: getattr(args, name) for name in given if getattr(args, name) is not None}
    if args.no_fallback:
        body["fallback"] = False
    return Mix(
        body=body,
        events=args.events,
        users=args.users,
        repeats=args.repeats,
        keys=[_key(text) for text in args.key],
    )


def _key(text: str) -> str:
    """A key as it stands, or the first line of a file: other users of a machine can read command lines."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"key: {text[1:]}: {error}") from None
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise InputError("key: empty, or with characters that no key has")
    return text


def _rate_text(report: Mapping[str, Any]) -> str:
    run = f"{report['rate_per_s']:g} a second ({report['arrivals']}) for {report['seconds']:.1f} s"
    good = f"good answers {report['goodput_per_s']:g} a second, within {report['deadline_ms']:g} ms"
    lines = [
        f"{report['requests']:,} requests, {run}",
        f"{good}; accepted {report['accepted_per_s']:g} a second",
        "statuses    " + _counts(report["statuses"]),
        "answers     " + _counts(report["answers"]),
    ]
    if report["reasons"]:
        lines.append("reasons     " + _counts(report["reasons"]))
    for name, values in report["latency_ms"].items():
        lines.append(f"{name:<12}" + _latencies(values) + "  from the planned arrival")
    lines.append("            " + _latencies(report["latency_from_sending_ms"]) + "  accepted, from sending")
    lines.append("sent late   " + _latencies(report["sent_late_ms"]))
    if (memory := report["server_memory_bytes"]) is not None:
        lines.append("memory      " + ", ".join(f"{name} {value / 2**20:.0f} MiB" for name, value in memory.items()))
    return "\n".join(lines)


def _capacity_text(found: Mapping[str, Any]) -> str:
    steps = (
        f"{step['concurrency']:>8}{step['good_per_s']:>10g}{step['answered_per_s']:>12g}  "
        f"{_latencies(step['latency_ms'])}  {_counts(step['reasons'])}".rstrip()
        for step in found["steps"]
    )
    end = f"capacity: {found['capacity_per_s']:g} good answers a second, at {found['concurrency']} clients"
    return "\n".join([f"{'clients':>8}{'good/s':>10}{'answered/s':>12}  latency", *steps, end])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def _latencies(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g} ms" for name, value in values.items()) or "none"
