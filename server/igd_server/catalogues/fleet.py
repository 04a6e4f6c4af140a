"""The servers of one store as a fleet: what they share, the rules of trials, and whether one may load a version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igd_core.store.base import ArtifactStore
    from igd_server.catalogues.models import Models
    from igd_server.catalogues.opening import Loader
    from igd_server.catalogues.served import LoadedVersions
    from igd_server.observe.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRules:
    """How the servers of a store try new versions.

    Attributes:
        seconds: a version has passed its trial after so many seconds of serving without a fault.
        answers: or after so many answers of the model, if that is sooner.
        hold: the other servers wait until the first one's version has passed; if False, until it serves.
        spread_s: the other servers take over within this time, each at a random point of it.
        lease_s: a server that tries a version counts as dead if the store does not hear from it for so many seconds.
    """

    seconds: float
    answers: int
    hold: bool
    spread_s: float
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetMember:
    """This server among those of the store: what all of its live catalogues share.

    Attributes:
        store: holds the pointers.
        loader: loads versions into the engine.
        versions: that are in the engine.
        models: that they are served with.
        metrics: counts swaps and refusals.
        holder: this server's name in the store.
        poll_s: seconds between two reads of a pointer.
        rules: for trials of new versions.
    """

    store: ArtifactStore
    loader: Loader
    versions: LoadedVersions
    models: Models
    metrics: Metrics
    holder: str
    poll_s: float
    rules: TrialRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """This server may load a version now.

    Attributes:
        allowed: how often an operator has allowed the version again.
        leads: this server is the first to try it, and its verdict counts for all.
        judged: the version has passed its trial, here or on another server.
    """

    allowed: int
    leads: bool = False
    judged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """This server must wait; ``for_what`` is for people, ``seconds`` how long, if that is known."""

    for_what: str
    seconds: float | None = None
