"""Waiting for what several tasks change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Changes:
    """Wakes all who wait, whenever something has changed."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def tell(self) -> None:
        """Something has changed."""
        for each in self._waiting:
            each.set()

    async def until(self, true: Callable[[], bool]) -> None:
        """Return once ``true()`` is; it is asked at each change."""
        woken = asyncio.Event()
        self._waiting.add(woken)
        try:
            while not true():
                await woken.wait()
                woken.clear()
        finally:
            self._waiting.discard(woken)
