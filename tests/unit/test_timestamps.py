from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import InputError
from igd_core.timestamps import (
    EARLIEST_S,
    LAST_S,
    Form,
    NotAnInstant,
    instant_of,
    instants_of,
    iso_of,
    latest_us,
    zone_named,
)

NOON_US = 1_769_860_800_000_000  # 2026-01-31T12:00:00Z

MOMENTS = st.integers(EARLIEST_S * 10**6, (LAST_S + 1) * 10**6 - 1)
UNITS = {Form.SECONDS: 10**6, Form.MILLISECONDS: 10**3, Form.MICROSECONDS: 1}
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(us=MOMENTS, unit=st.sampled_from(list(UNITS)))
def test_the_size_of_a_number_tells_its_unit(us: int, unit: Form) -> None:
    whole = us // UNITS[unit]
    for value in (whole, str(whole), f" {whole}.0\t"):
        found = instant_of(value)
        assert found.form == unit
        assert found.us == whole * UNITS[unit]


@given(us=st.integers(EARLIEST_S * 10**6, 2**63 // 1000 - 1), rest=st.integers(0, 999))
def test_nanoseconds_lose_nothing_above_a_microsecond(us: int, rest: int) -> None:
    for value in (us * 1000 + rest, str(us * 1000 + rest), f"{us * 1000 + rest}.00"):
        assert (instant_of(value).us, instant_of(value).form) == (us, Form.NANOSECONDS)
    many = instants_of(np.array([us * 1000 + rest], np.int64))
    assert (many.us.tolist(), many.form.tolist()) == ([us], [Form.NANOSECONDS])


@given(
    numbers=st.lists(
        st.integers(-(2**63), 2**63 - 1)
        | st.integers(8, 19)
        .flatmap(lambda digits: st.integers(10 ** (digits - 1), 10**digits - 1))
        .filter(lambda value: value < 2**63),
        max_size=20,
    )
)
def test_many_whole_numbers_are_read_as_each_alone(numbers: list[int]) -> None:
    many = instants_of(np.array(numbers, np.int64))
    for value, us, form in zip(numbers, many.us.tolist(), many.form.tolist(), strict=True):
        try:
            alone = instant_of(value)
        except NotAnInstant:
            assert (us, form) == (0, Form.NONE)
        else:
            assert (us, form) == (alone.us, alone.form)


@given(numbers=st.lists(st.floats() | st.floats(1e8, 1e20), max_size=20))
def test_many_fractions_are_read_as_each_alone(numbers: list[float]) -> None:
    many = instants_of(np.array(numbers, np.float64))
    for value, us, form in zip(numbers, many.us.tolist(), many.form.tolist(), strict=True):
        try:
            alone = instant_of(value)
        except NotAnInstant:
            assert form == Form.NONE
        else:
            assert form == alone.form
            assert us == pytest.approx(alone.us, rel=1e-15)


@given(moment=st.datetimes(datetime(1990, 1, 2), datetime(9998, 1, 1), timezones=ZONES), joint=st.sampled_from("Tt "))  # noqa: DTZ001 - zones are drawn
def test_text_with_a_zone_is_the_same_moment_however_it_is_written(moment: datetime, joint: str) -> None:
    offset = moment.strftime("%z")
    hours = [offset[:3]] if offset.endswith("00") else []
    utc = ["Z", "z", " UTC", "UTC", " GMT"] if not moment.utcoffset() else []
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    whole = (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds
    for zone in (offset, offset[:3] + ":" + offset[3:], *hours, *utc):
        stem = f"{moment.year:04}-{moment:%m-%d}{joint}{moment:%H:%M:%S}"
        for fraction in (f".{moment.microsecond:06}", f",{moment.microsecond:06}789"):
            assert instant_of(stem + fraction + zone).us == whole
        assert instant_of(stem + zone).us == whole - since.microseconds
        found = instant_of(stem[:-3] + zone)
        assert (found.us, found.form) == (whole - since.microseconds - moment.second * 10**6, Form.ISO)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "is no time from 1990 on"),
        (-1, "is no time from 1990 on"),
        (EARLIEST_S - 1, "is no time from 1990 on"),
        (LAST_S + 1, "is no time from 1990 on"),  # between seconds and milliseconds
        (-1_700_000_000, "is no time from 1990 on"),
        ("-1700000000", "is no time from 1990 on"),
        (10**30, "is no time from 1990 on"),
        ("9" * 5000, "is no time from 1990 on|is no finite"),
        (1.7, "is no time from 1990 on"),
        (float("nan"), "is no finite number"),
        (float("inf"), "is no finite number"),
        ("nan", "is no time: expected"),
        ("1e999", "is no finite number"),
        (True, "is no time: expected"),
        (None, "is no time: expected"),
        ([1_700_000_000], "is no time: expected"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("yesterday", "is no time: expected"),
        ("2026-01-31T12:00:00", "has no time zone"),
        ("2026-01-31 12:00", "has no time zone"),
        ("2026-01-31", "is a day without a time and a zone"),
        ("2026-02-30T12:00:00Z", "no time of any calendar"),
        ("2026-01-31T24:00:00Z", "no time of any calendar"),
        ("2026-01-31T12:00:00+24:00", "no time of any calendar"),
        ("1989-12-31T23:59:59.999999Z", "is not between 1990 and 9999"),
        ("1990-01-01T00:00:00+00:01", "is not between 1990 and 9999"),
        ("9999-12-31T23:59:59-00:01", "is not between 1990 and 9999"),
        ("0000-01-01T00:00:00Z", "no time of any calendar"),
        ("31/01/2026 12:00", "is no time: expected"),
        ("20260131", "is no time from 1990 on"),
        ("\u0662\u0660\u0662\u0666-01-31T12:00:00Z", "is no time: expected"),
        ("1.7E+09", "has lost digits"),
        ("1.70012E+12", "has lost digits"),
    ],
)
def test_what_is_no_instant_is_refused_with_the_reason(value: object, message: str) -> None:
    with pytest.raises(NotAnInstant, match=message):
        instant_of(value)


@pytest.mark.parametrize(
    ("value", "us"),
    [
        (1_769_860_800, NOON_US),
        (1_769_860_800.25, NOON_US + 250_000),
        ("1.7698608e9", NOON_US),  # as a program writes it: every digit is there
        ("1.769860800000E+12", NOON_US),
        ("1.769860800E+12", NOON_US),  # in milliseconds, and the digits reach the second
        ("1769860800.", NOON_US),
        ("+1769860800", NOON_US),
        ("2026-01-31T13:00+01", NOON_US),
        ("1990-01-01T00:00:00Z", EARLIEST_S * 10**6),
        ("2026-01-31T12:00:00." + "9" * 5000 + "Z", NOON_US + 999_999),
    ],
)
def test_what_is_an_instant_is_read_to_the_microsecond(value: object, us: int) -> None:
    assert instant_of(value).us == us


@pytest.mark.parametrize(
    ("text", "zone", "us", "form"),
    [
        ("2026-01-31T12:00:00", "UTC", NOON_US, Form.LOCAL),
        ("2026-01-31 13:00:00.5", "Europe/Berlin", NOON_US + 500_000, Form.LOCAL),
        ("2026-01-31 17:30", "+05:30", NOON_US, Form.LOCAL),
        ("2026-01-31T12:00:00Z", "Europe/Berlin", NOON_US, Form.ISO),
        ("2026-01-31", "z", NOON_US - 43_200_000_000, Form.DAY),
        ("2025-10-26T02:30:00", "Europe/Berlin", 1_761_438_600_000_000, Form.LOCAL),  # twice that night: the earlier
    ],
)
def test_a_zone_that_is_named_is_what_time_without_one_is_in(text: str, zone: str, us: int, form: Form) -> None:
    found = instant_of(text, zone=zone_named(zone))
    assert (found.us, found.form) == (us, form)


def test_an_hour_that_clocks_skip_never_was() -> None:
    with pytest.raises(NotAnInstant, match="never was: clocks of Europe/Berlin were set forward over it"):
        instant_of("2026-03-29T02:30:00", zone=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize("name", ["", "Mars/Base", "+25:00", "../etc/passwd", "a\x00b", "CEST "])
def test_a_zone_that_does_not_exist_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(InputError, match="no such zone"):
        zone_named(name)


@given(value=st.text("0123456789-:TZ.+, eE", max_size=40) | st.text(max_size=12))
def test_any_text_is_taken_or_refused_and_what_is_taken_is_believable(value: str) -> None:
    with contextlib.suppress(NotAnInstant):
        assert EARLIEST_S * 10**6 <= instant_of(value, zone=UTC).us < (LAST_S + 1) * 10**6


@given(value=st.none() | st.booleans() | st.integers() | st.floats() | st.lists(st.integers()) | st.binary())
def test_any_value_is_taken_or_refused(value: Any) -> None:
    with contextlib.suppress(NotAnInstant):
        assert EARLIEST_S * 10**6 <= instant_of(value).us < (LAST_S + 1) * 10**6


def test_the_latest_instant_is_a_day_ahead() -> None:
    assert latest_us(1_769_860_800.5) == NOON_US + 86_400_000_000 + 500_000
    assert abs(latest_us() - (time.time() + 86_400) * 10**6) < 60 * 10**6
    assert iso_of(NOON_US // 1000) == "2026-01-31T12:00:00.000Z"
    assert {form.told for form in Form} >= {"milliseconds since 1970", "text without a zone"}
