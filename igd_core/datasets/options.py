"""How raw data become rows, each setting once: flags of `igd data prepare`, recipes and checks are made of this."""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from igd_core.checked_settings import CheckedSettings, Count, Flag


def _seconds(day: str) -> float:
    return datetime.datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=datetime.UTC).timestamp()


def _day(text: str) -> str:
    try:
        _seconds(text or "2000-01-01")
    except ValueError:
        raise ValueError(f"{text!r} is no day such as 2015-10-01") from None
    return text


Day = Annotated[str, AfterValidator(_day), Flag(metavar="DAY")]
"""``YYYY-MM-DD`` in UTC, or empty for no bound."""


class Preparation(CheckedSettings):
    """How interactions become rows."""

    split: Literal["time", "leave-one-out"] = Field(
        default="time",
        description="at two instants for all users, 8:1:1; or each user's last and second last",
    )
    held_out: Count | None = Field(
        default=None,
        description="with --split time: newest interactions to judge by, and as many before them to choose by, at most "
        "(default: a tenth each, and never more)",
    )
    max_history: Count = Field(default=10, description="most entries of a history")


class AmazonOptions(CheckedSettings):
    """Which reviews count."""

    begin: Day = Field(default="2015-10-01", description="first day; empty for no bound")
    end: Day = Field(default="2018-11-01", description="first day after; empty for no bound")
    core: Count = Field(default=5, description="least reviews of a user, an item")

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        first, last = self.window()
        if first >= last:
            raise ValueError(f"begin: {self.begin} is not before end {self.end}")
        return self

    def window(self) -> tuple[float, float]:
        """First second inside the window, and first second after it."""
        return (_seconds(self.begin) if self.begin else -math.inf, _seconds(self.end) if self.end else math.inf)
