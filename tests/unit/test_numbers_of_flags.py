"""Every number of every command has a range, and what lies outside of it is one line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from igd_core.cli.main import main, make_parser
from igd_core.errors import InputError
from igd_core.ranges import Real, Several, Whole

if TYPE_CHECKING:
    from collections.abc import Iterator


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from actions(below)


NUMBERS = sorted(
    {
        (action.option_strings[0], action.type)
        for action in actions(make_parser())
        if isinstance(action.type, (Whole, Real, Several))
    },
    key=str,
)


def test_no_flag_takes_any_number_there_is() -> None:
    unbounded = [action.option_strings for action in actions(make_parser()) if action.type in {int, float, complex}]
    assert unbounded == []
    assert len(NUMBERS) > 50


@pytest.mark.parametrize(("flag", "kind"), NUMBERS, ids=[f"{flag}-{kind}" for flag, kind in NUMBERS])
def test_nonsense_is_refused_by_the_name_of_the_flag(flag: str, kind: Whole | Real | Several) -> None:
    one = kind.one if isinstance(kind, Several) else kind
    assert one.name == flag.removeprefix("--").replace("-", "_")
    beyond = [one.least - 1, one.most + 1] if isinstance(one, Whole) else [-1e-9 + one.least, one.most * 1.01]
    nonsense = [*map(str, beyond), "nan", "inf", "-inf", "1e400", "9" * 5000, "x", "", "0x10", "١٢x"]
    if isinstance(one, Whole):
        nonsense += ["1.5", "1e3"]
    for text in nonsense:
        with pytest.raises(InputError, match=rf"^{one.name}: "):
            kind(text)
    if not (isinstance(one, Real) and one.below):
        assert one(str(one.most)) == one.most
    if not (isinstance(one, Real) and one.above):
        assert one(str(one.least)) == one.least


def test_a_command_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, told in (
        (["prune", "--catalogue", "films", "--keep", "0"], "keep: 0 is not in 1..2147483647"),
        (["inspect", "--artifact", "none", "--top", "-1"], "top: -1 is not in 0..2147483647"),
        (["evaluate", "--concurrency", "0"], "concurrency: 0 is not in 1..4096"),
        (["tune", "--seed", "99999999999"], "seed: 99999999999 is not in 0..4294967295"),
        (["tune", "--lora-alpha", "inf"], "lora_alpha: inf is not in 0..1e+09, 0 itself left out"),
        (["build", "--gamma", "1.0000001"], "gamma: 1.0000001 is not in 0..1"),
        (["recommend", "--length-penalty", "2.00000001"], "length_penalty: 2.00000001 is not in 0..2"),
        (["build", "--smoothing", "nan"], "smoothing: nan is not in 0..1e+09"),
        (["evaluate", "--k", "5,0"], "k: 0 is not in 1..10000"),
        (["evaluate", "--beams", ","], "beams: at least one value is needed"),
    ):
        assert main(argv) == 2
        assert capsys.readouterr().err == f"igd: {told}\n"
