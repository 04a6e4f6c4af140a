"""What every trie and every rival is measured on: a catalogue's token paths, and prefixes where a beam may stand."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Int32 = NDArray[np.int32]
    Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathWorkload:
    """Distinct titles with their token paths.

    Attributes:
        titles: ``n`` distinct titles.
        offsets: ``(n + 1,)`` int64; path i is ``tokens[offsets[i]:offsets[i + 1]]``.
        tokens: ``(offsets[-1],)`` int32; every path ends with ``eos_id``, which stands nowhere else.
        frequency: ``(n,)`` int64, interactions.
        tokenizer_dir: holds ``tokenizer.json`` and ``tokenizer_config.json``.
        eos_id: last token of every path.
        vocab_size: width of the logits.
    """

    titles: Sequence[str]
    offsets: Int64
    tokens: Int32
    frequency: Int64
    tokenizer_dir: Path
    eos_id: int
    vocab_size: int

    def head(self, n: int) -> PathWorkload:
        """The first n items alone."""
        end = self.offsets[n]
        return replace(
            self,
            titles=self.titles[:n],
            offsets=self.offsets[: n + 1],
            tokens=self.tokens[:end],
            frequency=self.frequency[:n],
        )

    def paths(self) -> list[list[int]]:
        """Every path."""
        flat = self.tokens.tolist()
        return [flat[start:end] for start, end in pairwise(self.offsets.tolist())]

    def save(self, directory: Path) -> None:
        """Write plain arrays and JSON."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("offsets", "tokens", "frequency"):
            np.save(directory / f"{name}.npy", getattr(self, name), allow_pickle=False)
        rest = {"tokenizer_dir": str(self.tokenizer_dir), "eos_id": self.eos_id, "vocab_size": self.vocab_size}
        (directory / "workload.json").write_text(json.dumps({**rest, "titles": list(self.titles)}))

    @staticmethod
    def load(directory: Path) -> PathWorkload:
        """Read what `save` wrote."""
        rest = json.loads((directory / "workload.json").read_text())
        arrays = PathArrays.load(directory)
        return PathWorkload(
            titles=rest["titles"],
            tokenizer_dir=Path(rest["tokenizer_dir"]),
            eos_id=rest["eos_id"],
            vocab_size=rest["vocab_size"],
            offsets=arrays.offsets,
            tokens=arrays.tokens,
            frequency=arrays.frequency,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PathArrays:
    """The arrays of a saved workload alone: ``offsets``, ``tokens`` and ``frequency`` as in `PathWorkload`."""

    offsets: Int64
    tokens: Int32
    frequency: Int64

    @staticmethod
    def load(directory: Path) -> PathArrays:
        """Read the arrays that `PathWorkload.save` wrote."""
        return PathArrays(**{field.name: np.load(directory / f"{field.name}.npy") for field in fields(PathArrays)})


def random_prefixes(workload: PathWorkload, *, rows: int, rng: np.random.Generator) -> Int32:
    """Where a beam search of ``rows`` beams may stand: prefixes of real paths, all of one length.

    The length is uniform over the steps of one random path; the rows are random among the paths at least that long.

    Returns:
        ``(rows, depth)`` int32; depth is 0 at the root, and at most a path's length less its EOS.
    """
    lengths = np.diff(workload.offsets)
    depth = int(rng.integers(lengths[rng.integers(len(lengths))]))
    items = rng.choice(np.flatnonzero(lengths > depth), size=rows)
    prefixes: Int32 = workload.tokens[workload.offsets[items][:, None] + np.arange(depth)]
    return prefixes


class ContinuationOracle:
    """Which tokens may follow a prefix, by scanning the paths: slow, and independent of every trie."""

    def __init__(self, workload: PathWorkload) -> None:
        self._offsets = workload.offsets
        self._tokens = workload.tokens
        self._lengths = np.diff(workload.offsets)

    def __call__(self, prefix: Sequence[int] | Int32) -> set[int]:
        """Tokens t such that ``prefix + t`` begins a path."""
        items = np.arange(len(self._lengths))
        for depth, token in enumerate(prefix):
            items = items[self._lengths[items] > depth]
            items = items[self._tokens[self._offsets[items] + depth] == token]
        items = items[self._lengths[items] > len(prefix)]
        return set(self._tokens[self._offsets[items] + len(prefix)].tolist())
