"""Where a catalogue's pointer is and where it has been: what moving it does, whichever the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.errors import InputError
from igd_core.store.names import not_stored

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PAST = 20
"""Versions that a pointer remembers to have named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerMove:
    """Which version a pointer names now, and which it named before."""

    version: str
    before: str | None

    @staticmethod
    def between(before: str | None, after: Pointer) -> PointerMove:
        """From the version named before to where the pointer is after."""
        return PointerMove(version=str(after.current), before=before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """What a catalogue's pointer names, and what it named before, without what was rolled back.

    A version that somebody has rolled back from is not in ``past``, so no roll-back returns to it unless told so by
    name.

    Attributes:
        current: the version to serve; None before the first activation.
        past: versions that it named, each once, the latest last; at most `MAX_PAST`.
    """

    current: str | None = None
    past: tuple[str, ...] = ()

    @staticmethod
    def read(current: str | None, previous: str | None, past: str | None) -> Pointer:
        """From what a store keeps; ``past`` is versions between spaces, and counts only if it ends in ``previous``.

        Releases that know of no ``past`` move the pointer too; they keep ``previous`` alone.
        """
        versions = tuple((past or "").split())
        if (versions[-1] if versions else None) != previous:
            versions = () if previous is None else (previous,)
        return Pointer(current=current, past=versions)

    @property
    def previous(self) -> str | None:
        """What a roll-back returns to."""
        return self.past[-1] if self.past else None

    def moved_to(self, version: str) -> Pointer:
        """After an activation."""
        if version == self.current:
            return self
        past = [each for each in self.past if each not in (version, self.current)]
        if self.current is not None:
            past.append(self.current)
        return Pointer(current=version, past=tuple(past[-MAX_PAST:]))

    def rolled_back(self, catalogue: str, version: str | None, stored: Sequence[str]) -> Pointer:
        """After a roll-back: to ``version``, or to the latest of those before that is still stored.

        What is left is forgotten, and so is what came between. A ``version`` that was stored later than the current one
        and not left by a roll-back is a step forward, and the current one is remembered.

        Args:
            catalogue: for the messages.
            version: to go to; None: the one before.
            stored: all versions of the catalogue, newest first.

        Raises:
            InputError: it is not stored, or there is none before.
        """
        known = [each for each in self.past if each in stored and each != self.current]
        if version is None:
            if not stored:
                raise InputError(f"catalogue {catalogue!r}: the store holds no version of it")
            if not known:
                raise InputError(f"catalogue {catalogue!r}: no version was current before this one; name one")
            return Pointer(current=known[-1], past=tuple(known[:-1]))
        if version not in stored:
            raise not_stored(catalogue, version)
        if version in known:
            return Pointer(current=version, past=tuple(known[: known.index(version)]))
        age = {each: number for number, each in enumerate(stored)}
        if self.current not in age or age[version] <= age[self.current]:
            return self.moved_to(version)
        return Pointer(current=version, past=tuple(each for each in known if age[each] > age[version]))
