"""The numbers that a request, a flag and a variant may hold: each range once, with the type that checks it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MAX_K = 100
MAX_BEAMS = 200
DEFAULT_BEAMS = 10
"""Of catalogues that name none."""
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 10.0
MAX_LENGTH_PENALTY = 2.0

Wanted = Annotated[int, Field(ge=1, le=MAX_K)]
"""Items of an answer."""
Beams = Annotated[int, Field(ge=1, le=MAX_BEAMS)]
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
LengthPenalty = Annotated[float, Field(ge=0, le=MAX_LENGTH_PENALTY)]
