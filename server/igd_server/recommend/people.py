"""What is known of a user, all in one place: to be shown, and to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from igd_core.errors import StoreError, StoreUnavailable
from igd_server.api.user_ids import forms_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.store.events import Event
    from igd_core.store.impressions import Impression
    from igd_server.recommend.attribution import Attribution
    from igd_server.recommend.cache import ResultCache
    from igd_server.recommend.impressions import Impressions
    from igd_server.recommend.links import Links
    from igd_server.recommend.store_guard import StoreGuard


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is stored of a user, oldest first.

    Attributes:
        events: in the list that histories are made of.
        other_events: in the other list.
        impressions: answers on record.
        links: cached answers and notes of answers that were made for the user, those included that have ended.
        precomputed: lists made for the user in advance.
    """

    events: Sequence[Event]
    other_events: Sequence[Event]
    impressions: Sequence[Impression]
    links: int
    precomputed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """How much was deleted: events, impressions, answers and notes under keys of their own, lists made in advance."""

    events: int
    other_events: int
    impressions: int
    answers: int
    precomputed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """All that is stored by user. Methods raise StoreUnavailable if the store does not answer; to forget, ask again.

    Two forms of an id are one user (`igd_server.api.user_ids`): earlier releases may have stored data under any.
    """

    store: StoreGuard
    results: ResultCache
    attribution: Attribution
    impressions: Impressions
    links: Links

    async def known(self, user_id: str) -> Known:
        """Everything that is stored of a user."""
        events: list[Event] = []
        others: list[Event] = []
        shown: list[Impression] = []
        links: set[str] = set()
        precomputed = 0
        for form in forms_of(user_id):
            events += await self.store.history(form)
            others += await self.store.other_events(form)
            shown += await self.impressions.of(form)
            links |= await self.links.names(form)
            precomputed += len(await self.store.records("precomputed", form))
        return Known(events=events, other_events=others, impressions=shown, links=len(links), precomputed=precomputed)

    async def forget(self, user_id: str) -> Erased:
        """Delete everything that is stored of a user.

        Links are deleted last: what fails half-way is found again.
        """
        erased = [await self._forget(form) for form in forms_of(user_id)]
        return Erased(
            events=sum(each.events for each in erased),
            other_events=sum(each.other_events for each in erased),
            impressions=sum(each.impressions for each in erased),
            answers=sum(each.answers for each in erased),
            precomputed=sum(each.precomputed for each in erased),
        )

    async def _forget(self, user_id: str) -> Erased:
        await self.impressions.forget(user_id)
        names = await self.links.names(user_id)
        for request_id in await self._requests(user_id):
            names.update(self.attribution.names_of(request_id, user_id))
        here = self.attribution.forget(user_id, names) | self.results.forget(names)
        answers = len(here) + await self.store.drop([name for name in names if name not in here])
        await self.store.drop(list(here))
        await self.links.forget(user_id)
        gone = await self.store.forget(user_id)
        return Erased(
            events=gone.events,
            other_events=gone.other_events,
            impressions=gone.impressions,
            answers=answers,
            precomputed=gone.precomputed,
        )

    async def _requests(self, user_id: str) -> set[str]:
        """Answers that the user's events and impressions name."""
        try:
            events = [*await self.store.history(user_id), *await self.store.other_events(user_id)]
            shown = await self.impressions.of(user_id)
        except StoreUnavailable:
            raise
        except StoreError:  # what cannot be read can still be deleted
            return set()
        return {each.request_id for each in events if each.request_id is not None} | {one.request_id for one in shown}
