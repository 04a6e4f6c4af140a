"""`igd variants`: what became of the answers of each variant, and how sure the difference is."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from igd_core.checked_settings import CheckedSettings, Directory, Flag, Words
from igd_core.cli.flags import add_flags, read
from igd_core.errors import DataError
from igd_core.event_kinds import SUCCESS_KINDS, is_kind

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from igd_core.evaluation.bootstrap import Interval
    from igd_core.evaluation.click_rates import VariantClicks


def _instant(text: str | None) -> str | None:
    from igd_core.timestamps import NotAnInstant, instant_of

    if text is not None:
        try:
            instant_of(text)
        except NotAnInstant as error:
            raise ValueError(f"{text!r} {error}") from None
    return text


Time = Annotated[str | None, Flag(metavar="TIME"), AfterValidator(_instant)]


class VariantsFlags(CheckedSettings):
    """Which answers are counted, and what as a success."""

    export: Directory = Field(description="what `igd export` wrote of servers with IGD_IMPRESSIONS=true")
    kinds: Words[str] = Field(
        default=SUCCESS_KINDS, description="kinds of events that are a success of the answer that they name"
    )
    base: Annotated[str, Flag(metavar="NAME")] | None = Field(
        default=None, description="the variant that the others are compared with (default: the first by name)"
    )
    since: Time = Field(default=None, description="answers from then on, 2026-01-31T12:00:00Z: when all variants began")
    until: Time = Field(default=None, description="answers before then")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("variants", help="click rates of a server's variants and their difference")
    add_flags(parser, VariantsFlags)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the export, count, print."""
    from igd_core.datasets.export_format import StoreExport
    from igd_core.evaluation.click_rates import Period, click_rates

    asked = read(args, VariantsFlags)
    if wrong := [kind for kind in asked.kinds if not is_kind(kind)]:
        raise DataError(f"kinds: {wrong[0]!r} is no name of a kind")
    period = Period(since=_moment(asked.since), until=_moment(asked.until))
    found = click_rates(StoreExport.open(asked.export), kinds=asked.kinds, period=period, base=asked.base)
    if args.json:
        print(json.dumps({"kinds": asked.kinds, "variants": [asdict(each) for each in found]}))
    else:
        print(_table(found))
    return 0


def _moment(text: str | None) -> datetime | None:
    from igd_core.timestamps import instant_of

    return None if text is None else datetime.fromtimestamp(instant_of(text).us / 1e6, UTC)


def _table(found: Sequence[VariantClicks]) -> str:
    base = found[0].variant
    lines = [
        "answers that led to a success, by variant; 95 % intervals over people",
        f"{'variant':<20}{'people':>9}{'answers':>10}{'success':>9}  {'rate':<26}less {base or 'none'}",
    ]
    for each in found:
        rate = f"{each.rate:.4f} {_bounds(each.interval, '')}"
        difference = "" if each is found[0] else _difference(each.difference)
        counts = f"{each.people:>9,}{each.answers:>10,}{each.successes:>9,}"
        lines.append(f"{each.variant or 'none':<20}{counts}  {rate:<26}{difference}".rstrip())
    return "\n".join(lines)


def _bounds(interval: Interval | None, sign: str) -> str:
    return "(too few to say)" if interval is None else f"({interval.low:{sign}.4f} {interval.high:{sign}.4f})"


def _difference(difference: Interval | None) -> str:
    if difference is None:
        return "too few to say"
    star = "*" if difference.low > 0 or difference.high < 0 else ""
    return f"{difference.value:+.4f} {_bounds(difference, '+')}{star}"
