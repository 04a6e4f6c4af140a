"""Which kinds of events a server knows, which make a history, and which count as a success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from igd_core.errors import QueryError
from igd_core.event_kinds import HISTORY_KINDS, KINDS, SUCCESS_KINDS, UNSAID_KIND, steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.store.events import Event
    from igd_server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKinds:
    """Kinds by what they mean here.

    Attributes:
        known: all that events may have.
        history: of these, those that make a history.
        success: of these, those that count for the answer that they name.
    """

    known: tuple[str, ...] = KINDS
    history: frozenset[str] = frozenset(HISTORY_KINDS)
    success: frozenset[str] = frozenset(SUCCESS_KINDS)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As an operator has set them."""
        known = frozenset(settings.event_kinds)
        return cls(
            known=settings.event_kinds,
            history=known.intersection(settings.history_kinds),
            success=known.intersection(settings.success_kinds),
        )

    def checked(self, kind: str | None, field: str) -> str:
        """The kind that an event has, which may name none.

        Raises:
            QueryError: this server does not know it.
        """
        if kind is None:
            return UNSAID_KIND
        if kind not in self.known:
            raise QueryError(field, f"{kind!r} is no kind of event here; known are {', '.join(self.known)}")
        return kind

    def item_ids(self, events: Sequence[Event]) -> list[str]:
        """The history that events make, oldest first: one entry a step (`igd_core.event_kinds.steps`)."""
        kept = [(event.item_id, event.kind) for event in events if event.kind in self.history]
        return [kept[begin][0] for begin in steps(kept)]
