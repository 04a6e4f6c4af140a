"""What a fleet knows of a version: whether a server tries it first, and how that ended.

One server takes a new version first, and says in the store that it does. The others wait until it has passed its trial;
they refuse what it has refused, and what it did not come back from. `begun` and the others are the rules, for stores
that can run Python in one step; `redis/scripts.py` says the same in Lua, and the contract suite holds both to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

TrialState: TypeAlias = Literal["open", "trying", "passed", "refused", "died"]
"""Nobody has tried it; a server tries it; all may take it; who tried it could not serve it; who tried it has ended."""

Verdict: TypeAlias = Literal["passed", "refused", "died", "left"]
"""How a trial ends; ``left``: without an answer, another server may try."""

MAX_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Where a version stands.

    Attributes:
        state: see `TrialState`.
        holder: the server that tries it, or did.
        detail: one line for operators.
        allowed: how often an operator has allowed it again.
        ends_at: seconds of the store's clock at which a server that tries it must have been heard of again.
    """

    state: TrialState = "open"
    holder: str = ""
    detail: str = ""
    allowed: int = 0
    ends_at: float = 0.0

    @property
    def bars(self) -> bool:
        """Whether servers do not take the version, for what one of them met with it."""
        return self.state in ("refused", "died")

    @property
    def is_dead(self) -> bool:
        """Whether a server did not come back from it: only an operator's word, by name, lets another try."""
        return self.state == "died"

    def __str__(self) -> str:
        """For operators."""
        return f"{self.state} on {self.holder}" + (f" ({self.detail})" if self.detail else "")


def seen(trial: Trial, now: float) -> Trial:
    """The trial as it stands now: a server that was not heard of in time is taken for dead."""
    if trial.state == "trying" and trial.ends_at <= now:
        return replace(trial, state="died", detail=f"{trial.holder} tried it and was not heard of again")
    return trial


def begun(trial: Trial, holder: str, *, now: float, ttl_s: float) -> Trial:
    """After ``holder`` has asked to try it, or has said that it still does: its own ``trying``, or what stands."""
    if trial.state == "open" or (trial.state, trial.holder) == ("trying", holder):
        return replace(trial, state="trying", holder=holder, detail="", ends_at=now + ttl_s)
    return seen(trial, now)


def concluded(trial: Trial, holder: str, verdict: Verdict, detail: str) -> Trial:
    """After ``holder`` has said how it went. A pass says more than having been missed, a death more than a refusal."""
    if verdict == "left":
        return Trial(allowed=trial.allowed) if (trial.state, trial.holder) == ("trying", holder) else trial
    stands = {"passed": (), "died": ("passed",), "refused": ("passed", "died")}[verdict]
    if trial.state in stands:
        return trial
    return Trial(state=verdict, holder=holder, detail=one_line(detail), allowed=trial.allowed)


def allowed_again(trial: Trial) -> Trial:
    """After an operator has allowed it by name."""
    return Trial(allowed=trial.allowed + 1)


def pointed_at(trial: Trial) -> Trial:
    """After the pointer has moved to it: what was refused may have been healed; what died is allowed by name alone."""
    return Trial(allowed=trial.allowed) if trial.state == "refused" else trial


def one_line(detail: str) -> str:
    """``detail`` as it is stored."""
    return " ".join(detail.split())[:MAX_DETAIL_CHARS]
