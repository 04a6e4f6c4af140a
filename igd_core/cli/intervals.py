"""Flags of the intervals that `igd evaluate` and `igd compare` give with their figures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from igd_core.checked_settings import CheckedSettings, Seed


class IntervalFlags(CheckedSettings):
    """How intervals are drawn."""

    draw: Literal["rows", "targets"] = Field(
        default="rows", description="what the intervals draw: rows, or the titles they ask for with all their rows"
    )
    resamples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=2000, description="of the bootstrap, 100 at least"
    )
    seed: Seed = Field(default=0, description="of the bootstrap")
