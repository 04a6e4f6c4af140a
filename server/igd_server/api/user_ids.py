"""User ids: one user has one id, and no URL made of an id means another user.

Two texts that read the same, such as "é" composed and decomposed, are one id: the composed form (Unicode's NFC, as in
RFC 8265 for user names). Which form a client sends depends on its platform, and who asks to be forgotten means both.

Browsers, curl, httpx and most proxies turn ``DELETE /v1/users/a/../b`` into ``DELETE /v1/users/b``. So ids with ``.``
or ``..`` between slashes are refused.
"""

from __future__ import annotations

import unicodedata

from igd_core.store.events import MAX_USER_ID_CHARS

_DOTS = frozenset({".", ".."})


def user_id_of(text: str) -> str:
    """The id for a printable text of an allowed length.

    Raises:
        ValueError: the text cannot be an id.
    """
    if text.isascii():
        user_id = text
    else:
        user_id = unicodedata.normalize("NFC", text)
        if len(user_id) > MAX_USER_ID_CHARS:
            raise ValueError(f"{len(user_id)} characters when composed (NFC); {MAX_USER_ID_CHARS} at most")
    return without_dots(user_id)


def without_dots(text: str) -> str:
    """The text itself, as it is.

    Raises:
        ValueError: a client or a proxy would make another user's URL of it.
    """
    if "." in text and not _DOTS.isdisjoint(text.split("/")):
        raise ValueError(
            "an id may not be '.' or '..', or hold them between slashes: in a URL it would mean another user"
        )
    return text


def forms_of(text: str) -> tuple[str, ...]:
    """All forms of ``text`` that are one id: releases that did not compose ids may have stored data under any."""
    if text.isascii():
        return (text,)
    forms = (text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD")))
    return tuple(dict.fromkeys(form for form in forms if len(form) <= MAX_USER_ID_CHARS))
