"""Packs to batches: every optimiser step takes random rows, sorted by length into micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler

from igd_core.tuning.children import Decisions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from igd_core.catalogue.trie import TokenTrie
    from igd_core.tuning.examples import Pack


class StepSampler(Sampler[list[int]]):
    """Indices of packs, a list for each micro-batch; ``micro_batches`` successive lists make an optimiser step.

    Steps are random, so lengths do not bias them; within a step, packs of similar length share a micro-batch, so little
    is padding. An epoch has the same number of steps whatever the order: rows are spread evenly, so a step holds
    ``batch`` rows or, in small sets, some more.
    """

    def __init__(self, packs: Sequence[Pack], *, batch: int, micro_batches: int, seed: int) -> None:
        self._rows = np.array([pack.rows for pack in packs])
        self._lengths = np.array([len(pack) for pack in packs])
        self._seed = seed
        self._epoch = 0
        self.steps_per_epoch = max(1, int(self._rows.sum()) // batch)
        # With a single step there may be fewer packs than micro-batches; else each step gets at least that many.
        self.micro_batches = min(micro_batches, len(packs)) if self.steps_per_epoch == 1 else micro_batches

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch; the same epoch and seed always have the same order."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.steps_per_epoch * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._rows))
        before = np.cumsum(self._rows[order]) - self._rows[order]
        step = before * self.steps_per_epoch // self._rows.sum()
        for number in range(self.steps_per_epoch):
            members = order[step == number]
            members = members[np.argsort(self._lengths[members], kind="stable")]
            for part in np.array_split(members, self.micro_batches):
                yield part.tolist()


def by_length(packs: Sequence[Pack], tokens: int) -> list[list[int]]:
    """Indices of packs in batches of similar length, each of about ``tokens`` tokens; for evaluation."""
    batches: list[list[int]] = []
    for index in sorted(range(len(packs)), key=lambda pack: len(packs[pack])):
        if batches and (len(batches[-1]) + 1) * len(packs[index]) <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def collate(packs: Sequence[Pack], trie: TokenTrie | None = None) -> dict[str, Any]:
    """Join packs into a batch, padded on the right, where causal attention does not look.

    Args:
        packs: of the batch.
        trie: of the packs' edges, where targets are told from their siblings alone.

    Returns:
        ``input_ids`` and ``position_ids`` ``(b, n)`` int64; ``attention_mask`` ``(b, 1, n, n)`` bool, only where rows
        share a prompt; ``position`` ``(m,)`` int64, index into the ``b * n`` tokens; ``target`` ``(m,)`` int64;
        ``zero_ig`` ``(m,)`` bool; ``weight`` ``(m,)`` float32; ``rows``, a scalar; with a trie ``decisions``, a
        `Decisions`, which stays on the host.
    """
    width = max(len(pack) for pack in packs)
    input_ids = np.zeros((len(packs), width), dtype=np.int64)
    position_ids = np.zeros((len(packs), width), dtype=np.int64)
    for row, pack in enumerate(packs):
        input_ids[row, : len(pack)] = pack.tokens
        position_ids[row, : len(pack)] = pack.depth
    position = np.concatenate([pack.position.astype(np.int64) + row * width for row, pack in enumerate(packs)])
    batch: dict[str, Any] = {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "position": torch.from_numpy(position),
        "target": torch.from_numpy(np.concatenate([pack.target for pack in packs]).astype(np.int64)),
        "zero_ig": torch.from_numpy(np.concatenate([pack.zero_ig for pack in packs])),
        "weight": torch.from_numpy(np.concatenate([pack.weight for pack in packs])),
        "rows": torch.tensor(sum(pack.rows for pack in packs)),
    }
    if not all(pack.is_chain for pack in packs):
        visible = np.zeros((len(packs), 1, width, width), dtype=bool)
        visible[:, 0, np.arange(width), np.arange(width)] = True  # a softmax over nothing would be NaN
        for row, pack in enumerate(packs):
            visible[row, 0, : len(pack), : len(pack)] = pack.visible()
        batch["attention_mask"] = torch.from_numpy(visible)
    if trie is not None:
        edge = np.concatenate([pack.edge for pack in packs]).astype(np.int64)
        batch["decisions"] = Decisions.of(trie, position, edge)
    return batch
