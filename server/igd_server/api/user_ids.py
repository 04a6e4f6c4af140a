"""What names a user: one user has one id, and no URL made of an id means another user.

Two texts that read the same, as a composed and a decomposed "é", are one id: the composed one (Unicode's NFC, as RFC
8265 has it for user names). Which of them a client sends depends on its platform, and a person who asks to be forgotten
means both.

``DELETE /v1/users/a/../b`` is ``DELETE /v1/users/b`` to browsers, curl, httpx and most proxies. So ids with a ``.`` or
``..`` between slashes are not taken on.
"""

from __future__ import annotations

import unicodedata

from igd_core.store.events import MAX_USER_ID_CHARS

_DOTS = frozenset({".", ".."})


def user_id_of(text: str) -> str:
    """The id that ``text`` is; of printable text of a good length.

    Raises:
        ValueError: it cannot be one.
    """
    if text.isascii():
        user_id = text
    else:
        user_id = unicodedata.normalize("NFC", text)
        if len(user_id) > MAX_USER_ID_CHARS:
            raise ValueError(f"{len(user_id)} characters when composed (NFC); {MAX_USER_ID_CHARS} at most")
    if "." in user_id and not _DOTS.isdisjoint(user_id.split("/")):
        raise ValueError(
            "an id may not be '.' or '..', or hold them between slashes: in a URL it would mean another user"
        )
    return user_id


def forms_of(text: str) -> tuple[str, ...]:
    """All ids that read as ``text`` does, under which releases that took ids as they came may have stored something."""
    if text.isascii():
        return (text,)
    forms = (text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD")))
    return tuple(dict.fromkeys(form for form in forms if len(form) <= MAX_USER_ID_CHARS))
