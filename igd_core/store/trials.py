"""A version's trial: which server tries it first, and how that ended; shared by all servers of a store.

One server takes a new version first, and records that in the store. The others wait until it has passed its trial; they
refuse what the first server refused or died in. `begun` and the other functions are the rules, for stores that run
Python in one step; `redis/scripts.py` has the same rules in Lua, and the contract suite checks both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

TrialState: TypeAlias = Literal["open", "trying", "passed", "refused", "died"]
"""``open``: nobody has tried it; ``trying``: a server does; ``passed``: all may; the first refused it, or died."""

Verdict: TypeAlias = Literal["passed", "refused", "died", "left"]
"""How a trial ends; ``left``: undecided, another server may try."""

MAX_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The state of a version's trial.

    Attributes:
        state: see `TrialState`.
        holder: the server that tries the version, or tried it.
        detail: one line for operators.
        allowed: how often an operator has allowed it again.
        ends_at: when the trying server counts as dead unless it is heard of, in seconds of the store's clock.
    """

    state: TrialState = "open"
    holder: str = ""
    detail: str = ""
    allowed: int = 0
    ends_at: float = 0.0

    @property
    def bars(self) -> bool:
        """Whether servers refuse the version because of its trial."""
        return self.state in ("refused", "died")

    @property
    def is_dead(self) -> bool:
        """Whether a server died in it: only an operator, by name, can let another try."""
        return self.state == "died"

    def __str__(self) -> str:
        """The state, for operators."""
        return f"{self.state} on {self.holder}" + (f" ({self.detail})" if self.detail else "")


def seen(trial: Trial, now: float) -> Trial:
    """The trial as of now: a server not heard of in time counts as dead."""
    if trial.state == "trying" and trial.ends_at <= now:
        return replace(trial, state="died", detail=f"{trial.holder} tried it and was not heard of again")
    return trial


def begun(trial: Trial, holder: str, *, now: float, ttl_s: float) -> Trial:
    """The trial after ``holder`` asked to try it, or extended its trial: its own ``trying``, or unchanged."""
    if trial.state == "open" or (trial.state, trial.holder) == ("trying", holder):
        return replace(trial, state="trying", holder=holder, detail="", ends_at=now + ttl_s)
    return seen(trial, now)


def concluded(trial: Trial, holder: str, verdict: Verdict, detail: str) -> Trial:
    """The trial after ``holder`` reported the end. A pass outweighs a death, a death a refusal."""
    if verdict == "left":
        return Trial(allowed=trial.allowed) if (trial.state, trial.holder) == ("trying", holder) else trial
    stands = {"passed": (), "died": ("passed",), "refused": ("passed", "died")}[verdict]
    if trial.state in stands:
        return trial
    return Trial(state=verdict, holder=holder, detail=one_line(detail), allowed=trial.allowed)


def allowed_again(trial: Trial) -> Trial:
    """The trial after an operator allowed the version by name."""
    return Trial(allowed=trial.allowed + 1)


def pointed_at(trial: Trial) -> Trial:
    """The trial after the pointer moved to the version: a refusal is cleared, a death only by name."""
    return Trial(allowed=trial.allowed) if trial.state == "refused" else trial


def one_line(detail: str) -> str:
    """``detail`` in the form that is stored."""
    return " ".join(detail.split())[:MAX_DETAIL_CHARS]
