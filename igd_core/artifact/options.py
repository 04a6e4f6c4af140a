"""What an artifact is told, each setting once: the flags of `igd build`, recipes and their checks are made of this."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from igd_core.checked_settings import Amount, CheckedSettings, Count, Flag, Share
from igd_core.limits import DEFAULT_BEAMS, Beams
from igd_core.scorers.options import ScorerOptions

DEFAULT_INSTRUCTION = "Titles that one person chose, oldest first, one per line:\n"
DEFAULT_BULLET = "-"
OnUnspellable: TypeAlias = Literal["error", "skip", "spell"]


class BuildOptions(CheckedSettings):
    """Choices that become part of the artifact."""

    name: str = Field(default="catalogue", description="the catalogue's name")
    model_id: Annotated[str, Flag(metavar="NAME")] = Field(
        default="", description="checkpoint this artifact is meant for"
    )
    path_column: Annotated[str, Flag(metavar="NAME", shows_default=False)] = Field(
        default="title", description="what spells an item for the model (default: its title)"
    )
    allow_added_tokens: Annotated[bool, Flag(name="allow_special_tokens")] = Field(
        default=False, description="paths hold the checkpoint's own added tokens (semantic IDs)"
    )
    max_path_tokens: int = Field(default=72, ge=3, le=512, description="longest path; longer texts are cut")
    alpha: Share = Field(default=0.0, description="default of requests that name none")
    beams: Beams = Field(default=DEFAULT_BEAMS, description="width of the search, of requests that name none")
    smoothing: Amount = Field(default=0.0, description="added to every item's count, for cold items")
    instruction: Annotated[str, Flag(metavar="TEXT", shows_default=False)] = Field(
        default=DEFAULT_INSTRUCTION, description="text in front of the history"
    )
    bullet: Annotated[str, Flag(metavar="TEXT")] = Field(
        default=DEFAULT_BULLET, description="in front of each title, the next one included"
    )
    suffix: Annotated[str, Flag(metavar="TEXT")] = Field(default="", description="text behind the history")
    max_history: Count = Field(default=10, description="most items a prompt shows")
    drop_block: Count | None = Field(
        default=None, description="items that leave at once when a history outgrows that (default: half of it)"
    )
    on_unspellable: OnUnspellable = Field(
        default="error",
        description="an item whose title the tokenizer has no piece for refuses the catalogue, is left out, or is "
        "spelled by other characters",
    )
    scorer: ScorerOptions | None = Field(default=None, description="of the item scorer that is made as well")
