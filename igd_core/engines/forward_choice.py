"""How the embedded engine may be told to run a model; apart from it, since flags are made without torch."""

from __future__ import annotations

from typing import Literal, get_args

ForwardChoice = Literal["auto", "own", "transformers"]
FORWARD_CHOICES: tuple[str, ...] = get_args(ForwardChoice)
PrecisionChoice = Literal["auto", "fp32", "bf16"]
PRECISION_CHOICES: tuple[str, ...] = get_args(PrecisionChoice)
