"""`igd bench serve`: its flags, and its results as text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from igd_core.checked_settings import (
    CheckedSettings,
    Count,
    Directory,
    File,
    Flag,
    Listed,
    PositiveAmount,
    Seed,
    Share,
)
from igd_core.cli.flags import add_flags, read
from igd_core.cli.reading import add_reading_arguments, reading_of
from igd_core.errors import InputError
from igd_core.limits import Beams, Wanted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from igd_core.bench.serve import ServeBench
    from igd_core.bench.traffic import Mix, UserHistory

_DEFAULT_SECONDS = 30.0
_DEFAULT_STEP_SECONDS = 5.0


def _either(given: Mapping[str, object]) -> None:
    """Refuse none of some flags, and more than one."""
    said = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    flags = " or ".join(f"--{name.replace('_', '-')}" for name in given)
    if len(said) != 1:
        raise ValueError((f"{' and '.join(said)} given; " if said else "") + f"one of {flags} is needed")


class LoadFlags(CheckedSettings):
    """What load is put on which server."""

    rate: PositiveAmount | None = Field(default=None, description="requests a second")
    find_capacity: bool = Field(default=False, description="the most good answers a second")
    url: str = Field(default="http://127.0.0.1:8000", description="of the server")
    seconds: Annotated[PositiveAmount, Flag(metavar="S")] | None = Field(
        default=None, description="length of the run (default: 30), or of each step (default: 5)"
    )
    even: bool = Field(default=False, description="arrivals evenly spaced, rather than a Poisson process")
    histories: File | None = Field(default=None, description="rows as `igd data prepare` writes them")
    artifact: Directory | None = Field(default=None, description="make histories up, by its items' popularity")
    catalogue: Annotated[str, Flag(metavar="NAME")] | None = Field(
        default=None, description="ask for this one (default: the server's default)"
    )
    k: Wanted | None = Field(default=None, description="items wanted (default: the server's)")
    beams: Beams | None = Field(default=None, description="width of the search (default: the server's)")
    alpha: Annotated[Share, Flag(metavar="A")] | None = Field(
        default=None, description="strength of the rebalancing (default: the server's)"
    )
    timeout_ms: Annotated[Count, Flag(metavar="MS")] = Field(default=10_000, description="deadline of each request")
    fallback: bool = Field(default=True, description="take popularity rather than an error")
    events: Annotated[Share, Flag(metavar="SHARE")] = Field(default=0.0, description="of requests that record an event")
    users: Annotated[Share, Flag(metavar="SHARE")] = Field(default=0.0, description="asked by user_id, not by history")
    repeats: Annotated[Share, Flag(metavar="SHARE")] = Field(default=0.0, description="asked before, so perhaps cached")
    key: Annotated[Listed[str], Flag(metavar="KEY|@FILE", repeated=True)] = Field(
        default=(), description="repeatable; used in turn", repr=False
    )
    connections: Annotated[int, Field(ge=1, le=10_000)] = Field(default=512, description="at most")
    seed: Seed = Field(default=0, description="of arrivals, and of what is asked")
    metrics: Annotated[str, Flag(metavar="URL")] | None = Field(
        default=None, description="as http://127.0.0.1:8000/metrics: watch the server's memory"
    )
    plot: Annotated[File, Flag(metavar="PNG")] | None = Field(default=None, description="draw a run at a --rate")

    @model_validator(mode="after")
    def _one_load_of_one_source(self) -> Self:
        _either({"rate": self.rate, "find_capacity": self.find_capacity})
        _either({"histories": self.histories, "artifact": self.artifact})
        if self.find_capacity and self.plot:
            raise ValueError("plot: only a run at a --rate is drawn")
        return self


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Every flag of `igd bench serve`."""
    add_flags(parser, LoadFlags)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_reading_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the server, print, draw."""
    asked = read(args, LoadFlags)
    from igd_core.bench.serve import bench_rate, find_capacity

    bench = _bench(args, asked)
    if not bench.target.is_loopback:
        print(f"igd: this puts load on {bench.target.host}, which is not this machine", file=sys.stderr)
    if asked.rate is None:
        found = find_capacity(bench)
        print(json.dumps(found) if args.json else _capacity_text(found))
        return 0
    result = bench_rate(bench, rate=asked.rate, even=asked.even)
    print(json.dumps(result.report) if args.json else _rate_text(result.report))
    if asked.plot:
        from igd_core.bench.serve_plot import draw_serve

        draw_serve(result, asked.plot)
    return 0


def _bench(args: argparse.Namespace, asked: LoadFlags) -> ServeBench:
    from igd_core.bench.http_pool import Target
    from igd_core.bench.serve import ServeBench

    target = Target.of(asked.url)
    mix = _mix(asked)
    default_seconds = _DEFAULT_STEP_SECONDS if asked.find_capacity else _DEFAULT_SECONDS
    return ServeBench(
        target=target,
        histories=_histories(args, asked),
        mix=mix,
        deadline_s=asked.timeout_ms / 1000,
        seconds=default_seconds if asked.seconds is None else asked.seconds,
        connections=asked.connections,
        seed=asked.seed,
        metrics=None if asked.metrics is None else Target.of(asked.metrics),
    )


def _histories(args: argparse.Namespace, asked: LoadFlags) -> list[UserHistory]:
    from igd_core.bench.traffic import made_up_histories, read_histories
    from igd_core.datasets.sources import opened

    if asked.artifact is not None:
        return made_up_histories(asked.artifact, seed=asked.seed)
    if asked.histories is None:  # for the type checker: one of them is given
        raise InputError("histories: is needed")
    with opened([asked.histories]) as (file,):
        return read_histories(file, reading_of(args))


def _mix(asked: LoadFlags) -> Mix:
    from igd_core.bench.traffic import Mix

    body: dict[str, Any] = {"timeout_ms": asked.timeout_ms}
    given = ("catalogue", "k", "beams", "alpha")  # the server's k fits a catalogue of fewer than ten items
    body |= {name: getattr(asked, name) for name in given if getattr(asked, name) is not None}
    if not asked.fallback:
        body["fallback"] = False
    return Mix(
        body=body,
        events=asked.events,
        users=asked.users,
        repeats=asked.repeats,
        keys=[_key(text) for text in asked.key],
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
