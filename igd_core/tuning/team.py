"""The processes that share the steps of a run: how they meet, what they agree on, and sums over all of them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

from igd_core.errors import IGDError, InputError, ModelError, TuningError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Result = TypeVar("Result")

_PATIENCE = timedelta(minutes=30)
"""Longer than anything that one process does while the others wait: a recipe's rows, a checkpoint of 8B."""
_FROM_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class ToldElsewhere(TuningError):  # noqa: N818 - the name says what happened
    """The run has failed, and another of its processes says why."""


class PeerLost(TuningError):  # noqa: N818
    """Another process of the run has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The processes of a run, one a device; this one among them.

    Attributes:
        rank: of this process; 0 alone writes files and shows progress.
        size: number of processes.
        shards: whether they split weights, gradients and the optimiser's state among them (FSDP2), instead of each
            holding all (DDP).
        device: ``cpu`` or ``cuda``, of each process; None for one that has met no others, and is where its model is.
    """

    rank: int = 0
    size: int = 1
    shards: bool = False
    device: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def has_met(self) -> bool:
        """Whether a launcher made it, perhaps with a single process, whose steps then go the same way."""
        return self.device is not None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same in each."""
        if self.has_met:
            distributed.all_reduce(values)
        return values

    def agreed(self, action: Callable[[], Result]) -> Result:
        """What ``action`` returns here, once it has succeeded in every process.

        Raises:
            IGDError: in process 0, what went wrong, there or elsewhere.
            ToldElsewhere: in the others.
        """
        if self.size == 1:
            return action()
        mine: IGDError | OSError | None = None
        try:
            result = action()
        except (IGDError, OSError) as error:
            mine = error
        told: list[str | None] = [None] * self.size
        distributed.all_gather_object(told, None if mine is None else str(mine))
        failed = next((rank for rank, text in enumerate(told) if text is not None), None)
        if failed is None:
            return result
        if not self.is_first:
            raise ToldElsewhere(told[failed])
        if mine is not None:
            raise mine
        raise TuningError(f"process {failed} of {self.size}: {told[failed]}")

    def first_first(self, action: Callable[[], Result]) -> Result:
        """What ``action`` returns here; process 0 is done before the others begin, so that they find what it wrote."""
        if self.is_first:
            return self.agreed(action)
        self.agreed(lambda: None)
        return action()


def launched() -> bool:
    """Whether torchrun, or another launcher that speaks its language, started this process as one of several."""
    return all(name in os.environ for name in _FROM_A_LAUNCHER)


def launched_processes() -> int:
    """How many the launcher started."""
    return int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def joined(device: str, *, shards: bool = False, rendezvous: str = "env://") -> Iterator[Team]:
    """Meet the other processes of the run; which one this is, is in torchrun's variables of the environment.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        shards: see `Team`.
        rendezvous: where they meet, as torch spells it.

    Raises:
        InputError: another device.
        ModelError: this process has no GPU of its own.
        PeerLost: within the block, another process ended.
    """
    rank, size = int(os.environ["RANK"]), launched_processes()
    kind = kind_of(device)
    if kind == "cuda":
        local, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= cards:
            raise ModelError(f"device: process {rank} has no GPU of its own, this machine has {cards}")
        torch.cuda.set_device(local)
    distributed.init_process_group(
        "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl",
        init_method=rendezvous,
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    try:
        yield Team(rank=rank, size=size, shards=shards, device=kind)
    except RuntimeError as error:
        if _is_a_lost_peer(error):
            raise PeerLost("another process of the run has ended") from None
        raise
    finally:
        distributed.destroy_process_group()


def kind_of(device: str) -> str:
    """``cpu`` or ``cuda``, the devices that can be shared.

    Raises:
        InputError: it is another, or one of several GPUs.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise InputError(f"device: {device!r} is not one that several processes share; auto, cpu or cuda")
    return device


def _is_a_lost_peer(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
