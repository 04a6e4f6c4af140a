"""A catalogue's pointer: the version it names, the versions it named before, and the rules for moving it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from igd_core.errors import InputError
from igd_core.store.names import not_stored
from igd_core.store.trials import Trial, pointed_at

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PAST = 20
"""How many earlier versions a pointer remembers."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerMove:
    """The result of a roll-back.

    Attributes:
        version: that the pointer names now.
        before: the version that it named.
        trial: of ``version``; servers refuse the version if the trial bars it.
        passed_by: versions that were current later than ``version`` and in which a server died, the latest first.
    """

    version: str
    before: str | None
    trial: Trial = field(default_factory=Trial)
    passed_by: Mapping[str, Trial] = field(default_factory=dict)

    @staticmethod
    def between(seen: Pointer, after: Pointer, trials: Mapping[str, Trial]) -> PointerMove:
        """The move from one state of the pointer to another; ``trials`` of the stored versions at that time."""
        version = str(after.current)
        later = seen.past[seen.past.index(version) + 1 :] if version in seen.past else ()
        return PointerMove(
            version=version,
            before=seen.current,
            trial=pointed_at(trials.get(version, Trial())),
            passed_by={each: trials[each] for each in reversed(later) if each in trials and trials[each].is_dead},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """The version that a catalogue's pointer names, and those it named before, except those rolled back.

    A version that was rolled back is not in ``past``, so a later roll-back returns to it only by name.

    Attributes:
        current: the version to serve; None before the first activation.
        past: versions named before, each once, the latest last; at most `MAX_PAST`.
    """

    current: str | None = None
    past: tuple[str, ...] = ()

    @staticmethod
    def read(current: str | None, previous: str | None, past: str | None) -> Pointer:
        """Read the pointer from a store. ``past``: versions and spaces; counts only if it ends in ``previous``.

        Releases that do not know ``past`` also move the pointer, and update ``previous`` alone.
        """
        versions = tuple((past or "").split())
        if (versions[-1] if versions else None) != previous:
            versions = () if previous is None else (previous,)
        return Pointer(current=current, past=versions)

    @property
    def previous(self) -> str | None:
        """The version named before, even if it is no longer stored; `returns_to` is where a roll-back goes."""
        return self.past[-1] if self.past else None

    def returns_to(self, trials: Mapping[str, Trial]) -> str | None:
        """The version that a roll-back goes to: the latest one before that no server died of; None if there is none.

        What a server refused may have been healed since: the pointer may move there, and servers try it again.

        Args:
            trials: of all versions that are stored.
        """
        before = (each for each in reversed(self.past) if each in trials and each != self.current)
        return next((each for each in before if not trials[each].is_dead), None)

    def moved_to(self, version: str) -> Pointer:
        """After an activation."""
        if version == self.current:
            return self
        past = [each for each in self.past if each not in (version, self.current)]
        if self.current is not None:
            past.append(self.current)
        return Pointer(current=version, past=tuple(past[-MAX_PAST:]))

    def rolled_back(self, catalogue: str, version: str | None, trials: Mapping[str, Trial]) -> Pointer:
        """After a roll-back: to ``version``, or to the latest of those before that is stored and not died of.

        What is left is forgotten, and so is what came between. A ``version`` that was stored later than the current one
        and not left by a roll-back is a step forward, and the current one is remembered.

        Args:
            catalogue: for the messages.
            version: to go to; None: the one before.
            trials: of all versions that are stored, newest first.

        Raises:
            InputError: it is not stored, or there is none before that servers take.
        """
        if version is None:
            version = self.returns_to(trials)
            if version is None:
                raise InputError(self._why_not_back(catalogue, trials))
        known = [each for each in self.past if each in trials and each != self.current]
        if version not in trials:
            raise not_stored(catalogue, version)
        if version in known:
            return Pointer(current=version, past=tuple(known[: known.index(version)]))
        age = {each: number for number, each in enumerate(trials)}
        if self.current not in age or age[version] <= age[self.current]:
            return self.moved_to(version)
        return Pointer(current=version, past=tuple(each for each in known if age[each] > age[version]))

    def _why_not_back(self, catalogue: str, trials: Mapping[str, Trial]) -> str:
        if not trials:
            return f"catalogue {catalogue!r}: the store holds no version of it"
        barred = [each for each in reversed(self.past) if each in trials and each != self.current]
        if not barred:
            return f"catalogue {catalogue!r}: no version was current before this one; name one"
        named = ", ".join(f"{each} {trials[each]}" for each in barred[:_MOST_NAMED])
        return (
            f"catalogue {catalogue!r}: servers take no version that was current before this one: {named}; name another,"
            f" or one of these after `igd allow --catalogue {catalogue} --version VERSION`"
        )
