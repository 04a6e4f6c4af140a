"""Packs to batches: every optimiser step takes random rows, sorted by length into micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from igd_core.errors import InputError
from igd_core.tuning.children import Decisions
from igd_core.tuning.team import Team

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.trie import TokenTrie
    from igd_core.tuning.examples import Pack

ALONE = Team()


class StepSampler(Sampler[list[int]]):
    """Indices of packs, a list for each micro-batch of this process; ``passes`` successive lists make a step.

    Steps are random, so lengths do not bias them; within a step, packs of similar length share a micro-batch, so little
    is padded. An epoch has the same number of steps whatever the order: rows are spread evenly, so a step holds
    ``batch`` rows or, in small sets, some more.

    Which packs make a step, and how they are cut into micro-batches, does not depend on who computes them: processes
    share the micro-batches of a step, as many each, so that each computes about as many tokens. Only where their number
    is no multiple of ``team.size`` there are more of them.
    """

    def __init__(self, packs: Sequence[Pack], *, batch: int, micro_batches: int, seed: int, team: Team = ALONE) -> None:
        """Raises InputError where there are not enough rows for every process."""
        self._rows = np.array([pack.rows for pack in packs])
        self._lengths = np.array([len(pack) for pack in packs])
        self._weights = np.array([pack.weight.sum(dtype=np.float64) for pack in packs])
        self._seed = seed
        self._team = team
        self._epoch = 0
        self._order: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self.steps_per_epoch = max(1, int(self._rows.sum()) // batch)
        # With several steps each has at least as many packs, by the number of rows that settings allow in one.
        least = len(packs) if self.steps_per_epoch == 1 else max(micro_batches, batch // int(self._rows.max()))
        self.passes = min(-(-micro_batches // team.size), least // team.size)
        if not self.passes:
            raise InputError(
                f"devices: {team.size}, and a step has {least} packs of rows to share: fewer devices, a larger batch, "
                "or a smaller pack_rows"
            )
        self.micro_batches = self.passes * team.size

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch; the same epoch and seed always have the same order."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, None

    def weight_of_step(self, number: int) -> float:
        """Sum of the weights of a step of this epoch, over the micro-batches of all processes."""
        order, step = self._steps()
        return float(self._weights[order[step == number]].sum())

    def __len__(self) -> int:
        return self.steps_per_epoch * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        order, step = self._steps()
        for number in range(self.steps_per_epoch):
            members = order[step == number]
            members = members[np.argsort(self._lengths[members], kind="stable")]
            lengths = self._lengths[members]
            parts = np.split(np.arange(len(members)), even_cuts(lengths, self.micro_batches))
            padded = [len(part) * int(lengths[part[-1]]) for part in parts]
            for mine in even_shares(padded, self._team.size)[self._team.rank]:
                yield members[parts[mine]].tolist()

    def _steps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Packs in the epoch's order, and the step of each."""
        if self._order is not None:
            return self._order
        order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._rows))
        before = np.cumsum(self._rows[order]) - self._rows[order]
        self._order = (order, before * self.steps_per_epoch // self._rows.sum())
        return self._order


def even_cuts(lengths: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Where to cut a row of packs into ``parts`` of about as many tokens, none empty: ``(parts - 1,)`` indices."""
    cuts = np.searchsorted(np.cumsum(lengths), lengths.sum() * np.arange(1, parts) / parts, side="right")
    number = np.arange(1, parts)
    cuts = np.maximum.accumulate(np.maximum(cuts, number) - number) + number
    even: NDArray[np.int64] = np.minimum(cuts, len(lengths) - parts + number)
    return even


def even_shares(costs: Sequence[int], shares: int) -> list[list[int]]:
    """Indices of ``costs`` in ``shares`` of as many each, whose sums are about even: the dearest go first."""
    found: list[list[int]] = [[] for _ in range(shares)]
    sums = [0] * shares
    for index in sorted(range(len(costs)), key=lambda each: -costs[each]):
        poorest = min((n for n in range(shares) if len(found[n]) < len(costs) // shares), key=lambda n: sums[n])
        found[poorest].append(index)
        sums[poorest] += costs[index]
    return [sorted(share) for share in found]


class Batches(Dataset[dict[str, Any]]):
    """Packs, of which a list of indices takes a batch (`collate`), with what else is known of it.

    ``seed``, by which dropout is drawn, is that of its first pack: it is the same whichever process computes it.
    """

    def __init__(self, packs: Sequence[Pack], trie: TokenTrie | None) -> None:
        self._packs = packs
        self._trie = trie

    def __len__(self) -> int:
        return len(self._packs)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """The batch of some packs; a `DataLoader` asks for it so."""
        return {**collate([self._packs[index] for index in indices], self._trie), "first_pack": indices[0]}


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
