"""What may become a key in Redis, a folder's name or a stored text: nothing else gets past here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from igd_core.catalogue.items import MAX_ITEM_ID_CHARS
from igd_core.errors import InputError
from igd_core.store.events import MAX_EVENT_ID_CHARS, MAX_USER_ID_CHARS

if TYPE_CHECKING:
    from igd_core.store.events import Event

MAX_TIMESTAMP_MS = 2**53  # what JSON readers everywhere read exactly

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
    """``prefix``, if keys may begin with it: no braces, which would choose their hash slot.

    Raises:
        InputError: they may not.
    """
    return _require(_PREFIX, "prefix", prefix, "1 to 64 letters, digits or '_.:-'")


def require_catalogue_name(name: str) -> str:
    """``name``, if it can be a key's and a path's part: lower-case letters, digits, ``._-``, at most 64.

    Raises:
        InputError: it cannot.
    """
    return _require(_CATALOGUE, "catalogue", name, "1 to 64 lower-case letters, digits, '.', '_' or '-'")


def is_catalogue_name(name: str) -> bool:
    """Whether `require_catalogue_name` takes it."""
    return _CATALOGUE.fullmatch(name) is not None


def require_version(version: str) -> str:
    """``version``, if it looks like a manifest's: 16 hexadecimal digits.

    Raises:
        InputError: it does not.
    """
    return _require(_VERSION, "version", version, "16 hexadecimal digits")


def require_holder(holder: str) -> str:
    """``holder``, if it is a plain name of at most 128 characters.

    Raises:
        InputError: it is not.
    """
    return _require(_HOLDER, "holder", holder, "1 to 128 letters, digits or '._:@-'")


def require_result_key(key: str) -> str:
    """``key``, if it is 1 to 256 visible ASCII characters.

    Raises:
        InputError: it is not.
    """
    return _require(_RESULT_KEY, "key", key, "1 to 256 visible ASCII characters")


def require_user_id(user_id: str) -> str:
    """``user_id``, if it is 1 to 256 characters without control characters and lone surrogates.

    Raises:
        InputError: it is not.
    """
    return _require_text("user_id", user_id, MAX_USER_ID_CHARS)


def require_event(event: Event) -> Event:
    """``event``, if all stores can keep it and give it back as it was.

    Raises:
        InputError: names the field.
    """
    _require_text("event_id", event.event_id, MAX_EVENT_ID_CHARS)
    _require_text("item_id", event.item_id, MAX_ITEM_ID_CHARS)
    if not -MAX_TIMESTAMP_MS <= event.timestamp_ms <= MAX_TIMESTAMP_MS:
        raise InputError(f"timestamp_ms: {event.timestamp_ms} is out of range")
    return event


def require_keep(keep: int) -> int:
    """How many versions pruning keeps at least.

    Raises:
        InputError: it is negative.
    """
    if keep < 0:
        raise InputError(f"keep: {keep}; it must be 0 or more")
    return keep


def not_stored(catalogue: str, version: str) -> InputError:
    """What asking for an unknown version ends with."""
    return InputError(f"version {version} of catalogue {catalogue!r} is not stored")


def without_secrets(url: str) -> str:
    """A store's URL for messages: no user, no password, no options; no more than the scheme where it is malformed."""
    scheme, found, rest = url.partition("://")
    if not (found and _SCHEME.fullmatch(scheme)):
        return "***"
    address, _, options = rest.partition("?")
    user, at, hosts = address.rpartition("@")
    # A password that holds a raw "?", or one where the port should be, must not come out in pieces.
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
