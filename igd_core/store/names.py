"""Checks on everything that may become a key in Redis, the name of a folder, or a stored text."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from igd_core.errors import InputError
from igd_core.event_kinds import is_kind
from igd_core.ids import MAX_ITEM_ID_CHARS
from igd_core.store.events import (
    MAX_EVENT_ID_CHARS,
    MAX_POSITION,
    MAX_REQUEST_ID_CHARS,
    MAX_USER_ID_CHARS,
    MAX_VALUE,
)

if TYPE_CHECKING:
    from igd_core.store.events import Event

MODELS = "_models"
"""What published models are stored under, in the place of a catalogue's name; no catalogue can have it."""
MAX_TIMESTAMP_MS = 2**53  # the largest number that every JSON reader reads exactly

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_CATALOGUE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9a-f]{16}")
_HOLDER = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
_RESULT_KEY = re.compile(r"[!-~]{1,256}")
_SCHEME = re.compile(r"[a-z0-9+]{1,16}")
_HOST_AND_PORT = r"(\[[0-9A-Fa-f:.]*\]|[A-Za-z0-9_.-]*)(:\d{1,5})?"
_ADDRESS = re.compile(rf"{_HOST_AND_PORT}(,{_HOST_AND_PORT})*(/[^?#]*)?")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def require_prefix(prefix: str) -> str:
    """Check that keys may begin with ``prefix``: no braces, which would choose their hash slot. Returns it.

    Raises:
        InputError: they may not.
    """
    return _require(_PREFIX, "prefix", prefix, "1 to 64 letters, digits or '_.:-'")


def require_catalogue_name(name: str) -> str:
    """Check a catalogue name, a part of keys and paths: lower-case letters, digits, ``._-``, at most 64. Returns it.

    Raises:
        InputError: another name.
    """
    return _require(_CATALOGUE, "catalogue", name, "1 to 64 lower-case letters, digits, '.', '_' or '-'")


def require_shelf(name: str) -> str:
    """Check that versions can be stored under ``name``: a catalogue's, or `MODELS`. Returns it.

    Raises:
        InputError: another name.
    """
    return name if name == MODELS else require_catalogue_name(name)


def is_catalogue_name(name: str) -> bool:
    """Whether `require_catalogue_name` accepts it."""
    return _CATALOGUE.fullmatch(name) is not None


def require_version(version: str) -> str:
    """Check that ``version`` is 16 hexadecimal digits, like a manifest's. Returns it.

    Raises:
        InputError: it is not.
    """
    return _require(_VERSION, "version", version, "16 hexadecimal digits")


def require_holder(holder: str) -> str:
    """Check that ``holder`` is a plain name of at most 128 characters. Returns it.

    Raises:
        InputError: it is not.
    """
    return _require(_HOLDER, "holder", holder, "1 to 128 letters, digits or '._:@-'")


def require_result_key(key: str) -> str:
    """Check that ``key`` is 1 to 256 visible ASCII characters. Returns it.

    Raises:
        InputError: it is not.
    """
    return _require(_RESULT_KEY, "key", key, "1 to 256 visible ASCII characters")


def require_user_id(user_id: str) -> str:
    """Check that ``user_id`` is 1 to 256 characters without control characters and lone surrogates. Returns it.

    Raises:
        InputError: it is not.
    """
    return _require_text("user_id", user_id, MAX_USER_ID_CHARS)


def require_event(event: Event) -> Event:
    """Check that every store can keep ``event`` unchanged. Returns it.

    Raises:
        InputError: names the field.
    """
    _require_text("event_id", event.event_id, MAX_EVENT_ID_CHARS)
    _require_text("item_id", event.item_id, MAX_ITEM_ID_CHARS)
    if not -MAX_TIMESTAMP_MS <= event.timestamp_ms <= MAX_TIMESTAMP_MS:
        raise InputError(f"timestamp_ms: {event.timestamp_ms} is out of range")
    if not is_kind(event.kind):
        raise InputError(f"kind: {event.kind[:80]!r} is no name of a kind")
    if event.value is not None and not (math.isfinite(event.value) and abs(event.value) <= MAX_VALUE):
        raise InputError(f"value: {event.value} is not within {MAX_VALUE:g} of 0")
    if event.position is not None and not 1 <= event.position <= MAX_POSITION:
        raise InputError(f"position: {event.position} is not in 1 to {MAX_POSITION}")
    if event.request_id is not None:
        _require_text("request_id", event.request_id, MAX_REQUEST_ID_CHARS)
    return event


def require_keep(keep: int) -> int:
    """Check how many versions pruning keeps.

    Raises:
        InputError: it is negative.
    """
    if keep < 0:
        raise InputError(f"keep: {keep}; it must be 0 or more")
    return keep


def not_stored(catalogue: str, version: str) -> InputError:
    """The error for an unknown version."""
    if catalogue == MODELS:
        return InputError(f"model {version} is not stored")
    return InputError(f"version {version} of catalogue {catalogue!r} is not stored")


def without_secrets(url: str) -> str:
    """A store's URL for messages: no user, password or options; only the scheme if it is malformed."""
    scheme, found, rest = url.partition("://")
    if not (found and _SCHEME.fullmatch(scheme)):
        return "***"
    address, _, options = rest.partition("?")
    user, at, hosts = address.rpartition("@")
    # A password with a raw "?", or one in the port's place, must not show in pieces.
    if "@" in options or not _ADDRESS.fullmatch(hosts):
        return f"{scheme}://***"
    return f"{scheme}://{'***@' if user or at else ''}{hosts}"


def _require(pattern: re.Pattern[str], field_name: str, value: str, meaning: str) -> str:
    if not pattern.fullmatch(value):
        raise InputError(f"{field_name}: {value[:80]!r} is not {meaning}")
    return value


def _require_text(field_name: str, value: str, most: int) -> str:
    if not 1 <= len(value) <= most:
        raise InputError(f"{field_name}: {len(value)} characters; 1 to {most} are stored")
    if found := _UNPRINTABLE.search(value):
        raise InputError(f"{field_name}: {value[:80]!r} holds {found[0]!r}")
    return value
