"""Prompts as token ids: the operator's instruction, then the titles of the history, one a line.

Pieces are concatenated as ids, never as text, so no title can forge a control token or leave its line. A history item
is spelled by its own trie path without EOS, so the model reads in the prompt exactly what it would write.

A bullet begins every line, also the one that the model is to write. Without it, the text up to the end of a line is
followed by EOS in the training row that asks for that line, and by the next title in the row after it: tuned on
both, a model can be sure of neither. With it, a line that is not the last is followed by the bullet.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.errors import CatalogueError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.catalogue.trie import TokenTrie
    from igd_core.ids import ItemIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """How a history becomes a prompt; part of the artifact, so that serving and tuning use the same.

    Attributes:
        prefix_ids: BOS (where the tokenizer has one) and the instruction.
        bullet_ids: begin each line of the history, and end the prompt.
        suffix_ids: follow the history. Empty for a plain continuation, which lets a returning user's prompt reuse most
            of the previous one.
        max_history: most items that a prompt shows, >= 1.
        drop_block: how many items leave at once when the history outgrows the window, 1..max_history. With 1 the window
            slides at each event, and no prompt is a prefix of the next.
    """

    prefix_ids: tuple[int, ...]
    bullet_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    max_history: int = 10
    drop_block: int = 5

    def __post_init__(self) -> None:
        if not (self.prefix_ids or self.bullet_ids or self.suffix_ids):
            raise CatalogueError("the prompt template is empty; it needs an instruction, a bullet or a suffix")
        if self.max_history < 1:
            raise CatalogueError(f"max_history is {self.max_history}; at least 1 is needed")
        if not 1 <= self.drop_block <= self.max_history:
            raise CatalogueError(f"drop_block is {self.drop_block}; it must lie in 1..{self.max_history} (max_history)")

    @staticmethod
    def from_text(
        tokenizer: TitleTokenizer,
        *,
        instruction: str = "",
        bullet: str = "",
        suffix: str = "",
        max_history: int = 10,
        drop_block: int | None = None,
    ) -> PromptTemplate:
        """Tokenise the operator's text once; control tokens in it take effect.

        ``drop_block`` defaults to half the window, rounded up.
        """
        return PromptTemplate(
            prefix_ids=(*tokenizer.bos_ids, *tokenizer.encode_trusted(instruction)),
            bullet_ids=tuple(tokenizer.encode_trusted(bullet)),
            suffix_ids=tuple(tokenizer.encode_trusted(suffix)),
            max_history=max_history,
            drop_block=(max_history + 1) // 2 if drop_block is None else drop_block,
        )

    def window(self, history: Sequence[ItemIndex]) -> Sequence[ItemIndex]:
        """Shorten a history to the newest items: at most ``max_history``, and old ones leave in whole blocks.

        Which items stay depends on the history's length alone, so the prompt of a growing history keeps its prefix
        for ``drop_block`` events.
        """
        surplus = len(history) - self.max_history
        if surplus <= 0:
            return history
        dropped = -(-surplus // self.drop_block) * self.drop_block
        return history[dropped:]

    def build(
        self, history: Sequence[ItemIndex], trie: TokenTrie, leaf_of_item: NDArray[np.int32], *, left_out: int = 0
    ) -> list[int]:
        """Token ids of the prompt for ``history`` (oldest first), without the window's oldest ``left_out`` items."""
        shown = np.asarray(self.window(history)[left_out:], dtype=np.int64)
        return self.of_paths(trie.paths(leaf_of_item[shown]))

    def of_paths(self, paths: Iterable[Sequence[int]]) -> list[int]:
        """Token ids of the prompt whose lines are these paths (EOS included); used in serving and in tuning."""
        ids = list(self.prefix_ids)
        for path in paths:
            ids += [*self.bullet_ids, *path[:-1]]
        return [*ids, *self.bullet_ids, *self.suffix_ids]

    def num_left_out(
        self, history: Sequence[ItemIndex], trie: TokenTrie, leaf_of_item: NDArray[np.int32], *, max_tokens: int
    ) -> int:
        """How many of the window's oldest items the prompt cannot show in ``max_tokens``; `build` leaves them out.

        Tuning shortens its rows in the same way. The whole window, where not even the newest item fits.
        """
        shown = self.window(history)
        leaves = leaf_of_item[np.asarray(shown, dtype=np.int64)]
        depth = np.searchsorted(trie.level_start, trie.leaf_node[leaves], side="right") - 1  # EOS counts as a level
        ends = np.cumsum(len(self.bullet_ids) + depth - 1)
        over = len(self.prefix_ids) + len(self.bullet_ids) + len(self.suffix_ids) + int(ends[-1:].sum()) - max_tokens
        return 0 if over <= 0 else min(len(shown), int(np.searchsorted(ends, over)) + 1)

    def longest(self, depth: int) -> int:
        """Tokens of the longest possible prompt where no path is longer than ``depth``, EOS included."""
        line = len(self.bullet_ids) + depth - 1
        return len(self.prefix_ids) + len(self.bullet_ids) + len(self.suffix_ids) + self.max_history * line

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest, without an empty bullet: artifacts from before bullets keep their versions."""
        values = asdict(self)
        if not self.bullet_ids:
            del values["bullet_ids"]
        return values

    @staticmethod
    def from_json(data: dict[str, Any]) -> PromptTemplate:
        """Inverse of ``to_json``."""
        return PromptTemplate(
            prefix_ids=tuple(int(i) for i in data["prefix_ids"]),
            bullet_ids=tuple(int(i) for i in data.get("bullet_ids", ())),
            suffix_ids=tuple(int(i) for i in data["suffix_ids"]),
            max_history=int(data["max_history"]),
            drop_block=int(data["drop_block"]),
        )
