"""A field of a model is all that a setting takes: its flag and help come of it, and one refusal for flags and files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from igd_core.checked_settings import CheckedSettings, Count, Directory, Flag, Several, Share, Words, settings_in
from igd_core.cli.flags import add_flags, given, given_by_name
from igd_core.errors import InputError
from igd_core.tuning.settings import TuningSettings


class Rope(CheckedSettings):
    strands: Count = Field(default=3, description="twisted together")
    ends: Words[str] = Field(default=("frayed", "cut"), description="what they look like")


class Kite(CheckedSettings):
    span: float = Field(default=1.5, gt=0, lt=9, description="from tip to tip, 100% of it")
    tails: Several[Count] = Field(default=(2,), description="lengths to try")
    shape: Literal["delta", "box"] = Field(default="delta", description="of the frame")
    lit: bool = Field(default=True, description="fly at night")
    shed: Directory | None = Field(default=None, description="where it is kept")
    rope: Rope | None = Field(default=None, description="what holds it")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="fly")
    add_flags(made, Kite)
    return made


def test_each_field_has_a_flag_with_its_words_and_its_default() -> None:
    text = " ".join(parser().format_help().split())
    for told in (
        "--span N from tip to tip, 100% of it (default: 1.5)",
        "--tails N,... lengths to try (default: 2)",
        "--shape {delta,box} of the frame (default: delta)",
        "--lit, --no-lit fly at night (default: on)",
        "--shed DIR where it is kept --rope-strands",
        "--rope-strands N twisted together (default: 3)",
        "--rope-ends NAME,... what they look like (default: frayed,cut)",
    ):
        assert told in text


def test_what_the_flags_say_is_what_a_file_would_say() -> None:
    words = "--span 2 --tails 4,4,5 --no-lit --shed attic --rope-strands 7 --rope-ends new,dry"
    flags = Kite.read(given(parser().parse_args(words.split()), Kite))
    file = {"span": 2, "tails": [4, 5], "lit": False, "shed": "attic", "rope": {"strands": 7, "ends": ["new", "dry"]}}
    assert flags == Kite.read(file)
    assert Kite.read(flags.to_json()) == flags
    assert given(parser().parse_args([]), Kite) == {}
    assert Kite.read({}) == Kite()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"span": 0}, "span: 0 is not in 0..9, 0 itself left out, 9 itself left out"),
        ({"span": float("nan")}, "span: nan is not in 0..9, 0 itself left out, 9 itself left out"),
        (
            {"span": "2e0"},
            "span: '2e0' is a str; a number in 0..9, 0 itself left out, 9 itself left out is needed (2 ",
        ),
        ({"span": "wide"}, "span: 'wide' is a str; a number in 0..9"),
        ({"span": 9.0000001}, "span: 9.0000001 is not in 0..9"),
        ({"tails": [2, 0]}, "tails: 0 is not in 1..2147483647"),
        ({"tails": [True]}, "tails: True is a bool; a whole number in 1..2147483647 is needed"),
        ({"shape": "sphere"}, "shape: 'sphere' is not one of delta, box"),
        ({"lit": "yes"}, "lit: 'yes' is a str; true or false is needed"),
        ({"shed": 3}, "shed: 3 is an int; a path is needed, as text"),
        ({"tails": 3}, "tails: 3 is an int; a list is needed"),
        ({"rope": {"strands": 0}}, "rope.strands: 0 is not in 1.."),
        ({"rope": {"strand": 2}}, "rope: there is no setting 'strand'; is 'strands' meant?"),
        ({"rope": 3}, "rope: 3 is an int"),
        ({"colour": "red"}, "there is no setting 'colour'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name_and_value(values: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        Kite.read(values, where="kites.toml")
    assert str(refused.value).startswith(f"kites.toml: {told}")
    assert "\n" not in str(refused.value)


class Reel(CheckedSettings):
    metres: Annotated[Count, Flag(name="line_length", metavar="M")] = Field(description="of line")
    winder: Annotated[Callable[[], None], Flag(exists=False)] | None = None
    pull: Annotated[Share | tuple[int, ...], Flag(shows_default=False)] = Field(default=0.5, description="how hard")


class Stunt(CheckedSettings):
    name: str = Field(description="of the figure")
    reel: Reel | None = Field(default=None, description="what the line is on")
    second: Reel = Field(description="of a kite with two lines")


def test_a_field_says_how_its_flag_stands() -> None:
    made = {each.path: each for each in settings_in(Stunt)}
    assert list(made) == [
        ("name",), ("reel", "metres"), ("reel", "pull"), ("second", "metres"), ("second", "pull")
    ], "what only code sets has no flag"  # fmt: skip
    assert made["reel", "metres"].name == "line_length"
    needed = {path for path, each in made.items() if each.required}
    assert needed == {("name",), ("second", "metres")}, "a field of what may be left out is not needed"
    assert str(made["reel", "pull"].range) == "0..1", "a flag takes the first of several types"
    flags = argparse.ArgumentParser()
    add_flags(flags, Reel)
    assert "--line-length M of line --pull N how hard" in " ".join(flags.format_help().split())
    said = flags.parse_args(["--line-length", "30"])
    assert (given(said, Reel), given_by_name(said, Reel)) == ({"metres": 30}, {"line_length": 30})
    said.said_in_file = {"line_length": 20, "pull": 0.25, "other": 1}
    assert given(said, Reel) == {"metres": 30, "pull": 0.25}, "a flag before the file, which may hold other names"
    with pytest.raises(InputError, match=r"^metres: is needed$"):
        Reel.read({})
    assert Reel.complaint({"metres": 0}) == "line_length: 0 is not in 1..2147483647", "as the flag is called"
    assert Reel.complaint({}) is None, "what is missing may come from elsewhere"


def test_a_copy_is_checked_like_the_first_and_neither_changes() -> None:
    kite = Kite(rope=Rope())
    assert kite.replaced(span=3.0) == Kite(span=3.0, rope=Rope())
    with pytest.raises(ValidationError):
        kite.replaced(span=10.0)
    with pytest.raises(ValidationError):
        kite.span = 2.0


def test_every_setting_of_tuning_has_words() -> None:
    fields = [*TuningSettings.model_fields.values()]
    assert len(fields) > 20
    assert all(field.description for field in fields)
