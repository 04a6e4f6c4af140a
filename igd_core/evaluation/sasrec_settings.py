"""How large a SASRec is, and how it is trained."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from igd_core.checked_settings import CheckedSettings, Count, PositiveAmount


class SASRecSettings(CheckedSettings):
    """Size of the model, and how it is trained."""

    width: Annotated[int, Field(ge=1, le=1024)] = Field(default=64, description="of embeddings")
    layers: Annotated[int, Field(ge=1, le=24)] = Field(default=2, description="transformer blocks")
    heads: Annotated[int, Field(ge=1, le=64)] = Field(default=2, description="of attention; a divisor of the width")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.2, description="everywhere")
    length: Annotated[int, Field(ge=1, le=1000)] = Field(default=20, description="items of a history that it reads")
    batch: Annotated[int, Field(ge=1, le=65_536)] = Field(default=128, description="windows in a step")
    learning_rate: PositiveAmount = Field(default=1e-3, description="of AdamW")
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(default=100, description="at most")
    patience: Count = Field(
        default=5, description="training ends after this many epochs without a better validation loss"
    )

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide a width of {self.width}")
        return self
