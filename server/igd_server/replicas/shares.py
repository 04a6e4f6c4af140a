"""What each replica gets: its share of the operator's numbers, of the cores and of the cards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_server.settings import Settings

DIVIDED = ("max_running", "max_waiting", "local_results", "cache_bytes", "max_unsent_bytes")
"""Settings that are meant of the whole server. The others hold in each replica as they are."""

_LEAST = {"max_unsent_bytes": 1 << 16}
_THREADS = "OMP_NUM_THREADS"
_CARDS = "CUDA_VISIBLE_DEVICES"
_DRIVER = Path("/proc/driver/nvidia/gpus")


def share_of(settings: Settings, number: int) -> Settings:
    """The settings of replica ``number``, from 1; the divided ones add up to the operator's number."""

    def share(name: str) -> int:
        whole: int = getattr(settings, name)
        each, rest = divmod(whole, settings.replicas)
        return max(_LEAST.get(name, 0), each + (number <= rest))

    # Defaults stay defaults: some checks are of what an operator said alone.
    said = {name: getattr(settings, name) for name in settings.model_fields_set}
    return type(settings).model_validate(said | {"replicas": 1} | {name: share(name) for name in DIVIDED})


def environment_of(
    settings: Settings,
    number: int,
    environment: Mapping[str, str],
    *,
    cores: int | None = None,
    cards: Sequence[str] | None = None,
) -> dict[str, str]:
    """The variables of replica ``number``'s process: threads for its share of the cores, and one card, in turn.

    ``OMP_NUM_THREADS`` is left alone where the operator has set it, and cards where ``device`` names one.

    Args:
        settings: of the whole server.
        number: from 1.
        environment: of this process.
        cores: that this process may use; found out by default.
        cards: of this machine, as CUDA names them; found out by default. Those of ``CUDA_VISIBLE_DEVICES`` go before.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    given = dict(environment)
    if not environment.get(_THREADS):
        given[_THREADS] = str(max(1, cores // settings.replicas))
    visible = environment.get(_CARDS)
    if visible is not None:
        cards = [card.strip() for card in visible.split(",") if card.strip()]
    elif cards is None:
        cards = [str(at) for at, _ in enumerate(_DRIVER.iterdir())] if _DRIVER.is_dir() else []
    if settings.device in ("auto", "cuda") and len(cards) > 1:
        given[_CARDS] = cards[(number - 1) % len(cards)]
    return given
