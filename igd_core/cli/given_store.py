"""The store that a command is given by its flags, or else by the variables that servers have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from igd_core.errors import InputError

if TYPE_CHECKING:
    from igd_core.store.base import HistoryLimits, Store

_TIMEOUT_S = 10.0


def open_given_store(
    url: str | None = None, prefix: str | None = None, *, history: HistoryLimits | None = None
) -> Store:
    """Open the store; each of its calls may take 10 s.

    Args:
        url: ``IGD_STORE`` if there is none.
        prefix: ``IGD_STORE_PREFIX`` if there is none, else the default.
        history: bounds on what is read of one user.

    Raises:
        InputError: no URL; or one of a store that ends with this command.
    """
    from igd_core.store.base import HistoryLimits, StoreOptions
    from igd_core.store.open import MEMORY, open_store

    url = url or os.environ.get("IGD_STORE")
    if not url:
        raise InputError("store: give --store URL, or IGD_STORE")
    if url == MEMORY:
        raise InputError(f"store: {MEMORY} ends with this command; redis:// and file:/// stay")
    prefix = prefix or os.environ.get("IGD_STORE_PREFIX") or StoreOptions().prefix
    options = StoreOptions(prefix=prefix, timeout_s=_TIMEOUT_S, history=history or HistoryLimits())
    return open_store(url, options=options)
