"""How a file or a request may write an instant, and which instants are accepted; one convention for all.

An instant is ISO 8601 with its zone (``2026-01-31T12:00:00Z``, ``2026-01-31 13:00:00.5+01:00``) or a number since
1970-01-01 UTC, whose size tells its unit:

    seconds        631152000 to 253402300799       1990 to 9999
    milliseconds   631152000000 to ...             and so on: no two of these ranges overlap
    microseconds   631152000000000 to ...
    nanoseconds    631152000000000000 to ...

A number between these ranges, or below them, is not an instant: a date in January 1970 is a wrong unit. Instants from
1990 up to one day ahead of the reader's clock (`latest_us`) are accepted, all others refused.

A time without a zone, and a day without a time, is refused unless the zone is given (`zone`).
"""

from __future__ import annotations

import math
import re
import time
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

EARLIEST_S = 631_152_000
"""1990-01-01T00:00:00Z in seconds since 1970; earlier instants are refused."""
LAST_S = 253_402_300_799
"""The last second of the year 9999; no unit's range goes beyond."""
MAX_AHEAD_S = 86_400

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[+-]?(?P<whole>\d+)(?:\.(?P<fraction>\d*))?(?:(?P<e>[eE])(?P<power>[+-]?\d+))?", re.ASCII)
_ISO = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](?P<clock>\d\d:\d\d(?::\d\d)?)(?:[.,](?P<fraction>\d+))?"
    r"(?P<zone>[Zz]| ?UTC| ?GMT| ?[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
_DOTTED = re.compile(
    r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})(?:,? (?P<hour>\d{1,2}):(?P<rest>\d\d(?::\d\d)?))?", re.ASCII
)
_MAX_CHARS = 8192


class Form(IntEnum):
    """How an instant was written; a file with several forms has probably mistaken the unit of one."""

    NONE = 0
    SECONDS = 1
    MILLISECONDS = 2
    MICROSECONDS = 3
    NANOSECONDS = 4
    ISO = 5
    LOCAL = 6
    DAY = 7

    @property
    def told(self) -> str:
        """The form in words."""
        return _FORMS[self]


_FORMS = {
    Form.NONE: "no time",
    Form.SECONDS: "seconds since 1970",
    Form.MILLISECONDS: "milliseconds since 1970",
    Form.MICROSECONDS: "microseconds since 1970",
    Form.NANOSECONDS: "nanoseconds since 1970",
    Form.ISO: "text with a zone",
    Form.LOCAL: "text without a zone",
    Form.DAY: "a day without a time",
}
_PER_SECOND = {Form.SECONDS: 1, Form.MILLISECONDS: 10**3, Form.MICROSECONDS: 10**6, Form.NANOSECONDS: 10**9}


class NotAnInstant(ValueError):  # noqa: N818 - the name says what was found
    """Not an instant; the message continues a sentence that begins with the value: ``is ...``, ``has ...``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """An instant, and how it was written.

    Attributes:
        us: microseconds since 1970-01-01 UTC.
        form: never `Form.NONE`.
    """

    us: int
    form: Form


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instants:
    """Numbers as instants.

    Attributes:
        us: ``(n,)`` int64, microseconds since 1970-01-01 UTC; 0 where `form` is `Form.NONE`.
        form: ``(n,)`` int8 `Form`; `Form.NONE` for a number that is no instant.
    """

    us: NDArray[np.int64]
    form: NDArray[np.int8]


def latest_us(now_s: float | None = None) -> int:
    """The last accepted instant, in microseconds: one day ahead of a clock (seconds since 1970)."""
    return int(((time.time() if now_s is None else now_s) + MAX_AHEAD_S) * 1_000_000)


def iso_of(ms: int) -> str:
    """Milliseconds since 1970 as ISO 8601.

    >>> iso_of(1_769_860_800_250)
    '2026-01-31T12:00:00.250Z'
    """
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def zone_named(name: str) -> tzinfo:
    """A zone by name: ``UTC``, ``Europe/Berlin`` or an offset such as ``+01:00``.

    Raises:
        InputError: no zone has this name.
    """
    if offset := re.fullmatch(r"([+-])(\d\d):?(\d\d)", name, re.ASCII):
        minutes = int(offset[2]) * 60 + int(offset[3])
        if minutes < 24 * 60:
            found: tzinfo = datetime.strptime(f"{offset[1]}{offset[2]}{offset[3]}", "%z").tzinfo or UTC
            return found
    if name.upper() in {"UTC", "Z"}:
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"timezone {name!r}: no such zone; expected UTC, +01:00 or a name such as Europe/Berlin"
        ) from None


def instant_of(value: object, *, zone: tzinfo | None = None) -> Instant:
    """Read one value, a number or a text, which may hold a number.

    Args:
        value: of a request, or of a cell.
        zone: of times without a zone and days without a time; None refuses them.

    Raises:
        NotAnInstant: it is none, or lies before 1990 or after the year 9999.
    """
    if isinstance(value, str):
        return _of_text(value, zone)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotAnInstant("is no time: expected ISO 8601 with a zone, or a number since 1970")
    return _of_number(value)


def dotted_as_iso(text: str) -> str:
    """A day or a time with dots, which every country that writes it means day first, as ISO 8601; else the text itself.

    >>> dotted_as_iso("5.12.2024 7:59"), dotted_as_iso("12/5/2024")
    ('2024-12-05 07:59', '12/5/2024')
    """
    found = _DOTTED.fullmatch(text.strip(" \t"))
    if not found:
        return text
    clock = f" {found['hour']:0>2}:{found['rest']}" if found["hour"] else ""
    return f"{found['year']}-{found['month']:0>2}-{found['day']:0>2}{clock}"


def instants_of(numbers: NDArray[np.int64] | NDArray[np.uint64] | NDArray[np.float64]) -> Instants:
    """Read many numbers at once, ``(n,)``; NaN and infinities are not instants."""
    us = np.zeros(len(numbers), np.int64)
    form = np.zeros(len(numbers), np.int8)
    for unit, per_second in _PER_SECOND.items():
        first, last = EARLIEST_S * per_second, (LAST_S + 1) * per_second
        at = np.flatnonzero((numbers >= first) & (numbers < last))
        chosen = numbers[at]
        if per_second <= 10**6:
            scale = 10**6 // per_second
            # Keep every digit of a whole number in a fine unit: the product of two floats would round it.
            us[at] = np.rint(chosen * scale) if chosen.dtype.kind == "f" else chosen.astype(np.int64) * scale
        else:
            us[at] = np.rint(chosen / 1000) if chosen.dtype.kind == "f" else (chosen // 1000).astype(np.int64)
        form[at] = unit
    return Instants(us=us, form=form)


def _of_number(value: float) -> Instant:
    if not math.isfinite(value):
        raise NotAnInstant("is no finite number")
    for unit, per_second in _PER_SECOND.items():
        if EARLIEST_S * per_second <= value < (LAST_S + 1) * per_second:
            if isinstance(value, int):
                return Instant(us=value * 10**6 // per_second, form=unit)
            return Instant(us=round(value * 10**6 / per_second), form=unit)
    raise NotAnInstant("is no time from 1990 on in seconds, milliseconds, microseconds or nanoseconds since 1970")


def _of_text(text: str, zone: tzinfo | None) -> Instant:
    stripped = text.strip(" \t")
    if not stripped:
        raise NotAnInstant("is empty")
    if len(stripped) <= _MAX_CHARS:
        if number := _NUMBER.fullmatch(stripped):
            return _of_digits(number)
        if found := _ISO.fullmatch(stripped):
            return _of_iso(found, zone)
    raise NotAnInstant("is no time: expected ISO 8601 with a zone such as 2026-01-31T12:00:00Z, or a number since 1970")


def _of_digits(number: re.Match[str]) -> Instant:
    whole, fraction, power = number["whole"], number["fraction"] or "", int((number["power"] or "0")[:6])
    if not number["power"] and not fraction.strip("0") and len(whole) <= 20:  # a float cannot hold nanoseconds
        return _of_number(int(number.group().partition(".")[0]))
    value = float(number.group())
    found = _of_number(value)
    # 1.7E+09 is what a spreadsheet leaves of 1700123456: without the last digits, days of events look alike.
    unit_digits = len(str(_PER_SECOND[found.form])) - 1
    if number["e"] == "E" and power - len(fraction) > unit_digits:
        raise NotAnInstant("has lost digits, as spreadsheets write long numbers: export the column as whole numbers")
    return found


def _of_iso(found: re.Match[str], zone: tzinfo | None) -> Instant:
    form = Form.DAY if found["clock"] is None else Form.LOCAL if found["zone"] is None else Form.ISO
    if form != Form.ISO and zone is None:
        raise NotAnInstant("is a day without a time and a zone" if form == Form.DAY else "has no time zone")
    written = (found["zone"] or "").strip().upper()
    offset = "" if form != Form.ISO else "+00:00" if written in {"Z", "UTC", "GMT"} else written
    clock = found["clock"] or "00:00"
    fraction = (found["fraction"] or "").ljust(6, "0")[:6]
    clock += (":00" if len(clock) == 5 else "") + "." + fraction
    try:
        moment = datetime.fromisoformat(f"{found['day']}T{clock}{offset}")
        if form != Form.ISO:
            moment = _in_zone(moment, zone or UTC)
        us = (moment - _EPOCH) // timedelta(microseconds=1)
    except NotAnInstant:
        raise
    except (ValueError, OverflowError):
        raise NotAnInstant("is no time of any calendar") from None
    if not EARLIEST_S * 10**6 <= us < (LAST_S + 1) * 10**6:
        raise NotAnInstant("is not between 1990 and 9999")
    return Instant(us=us, form=form)


def _in_zone(naive: datetime, zone: tzinfo) -> datetime:
    """The time of a wall clock; of an hour that the clock shows twice, the earlier one."""
    moment = naive.replace(tzinfo=zone)
    if moment.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != naive:
        raise NotAnInstant(f"never was: clocks of {zone} were set forward over it")
    return moment
