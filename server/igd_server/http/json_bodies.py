"""Bodies of JSON: what cannot be read, or has two meanings, is refused with its place and the reason.

Of equal keys in one object, JSON's readers take the first, the last or both: such a body means what its sender did not
check, so it is refused, as a field is that there is not.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from igd_server.api.problems import INVALID_FIELD, MALFORMED_JSON, Finding

_SHOWN_CHARS = 128


def parsed(raw: bytes) -> Any | Finding:  # noqa: ANN401 - any JSON
    """The value of a body, or why there is none; an empty body is ``None``."""
    if not raw:
        return None
    try:
        # As `json.loads` decodes: with a byte order mark, or in UTF-16, it is read too.
        text = raw.decode(json.detect_encoding(raw), "surrogatepass")
    except UnicodeDecodeError as error:
        detail = f"no {error.encoding.upper()} at byte {error.start}"
        return Finding(kind=MALFORMED_JSON, detail=detail)
    try:
        return _read(text, _STRICT)
    except ValueError:  # valid JSON all the same, up to there
        found = _read(text, _LOOSE)
        return found if isinstance(found, Finding) else _refused(found)


class _Repeated(ValueError):  # noqa: N818 - never leaves this module
    pass


class _Pairs(list[tuple[str, Any]]):
    """An object as it was written."""


class _Digits(str):
    """An integer as it was written."""

    __slots__ = ()


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Repeated
    return made


# Not pydantic's own JSON parser: that takes half of a surrogate pair for malformed JSON, and NaN for JSON.
_STRICT = json.JSONDecoder(object_pairs_hook=_with_distinct_keys)
_LOOSE = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=_Digits)


def _read(text: str, decoder: json.JSONDecoder) -> Any | Finding:  # noqa: ANN401 - any JSON
    """Raises ValueError where the decoder's own hooks do, and for an integer of too many digits."""
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        detail = f"{error.msg.removesuffix(' at')} at character {error.pos}"  # Python says it of control characters
        return Finding(kind=MALFORMED_JSON, detail=detail)
    except RecursionError:
        return Finding(kind=MALFORMED_JSON, detail="arrays or objects inside one another, deeper than is read")


def _refused(value: Any) -> Finding:  # noqa: ANN401 - any JSON
    """The first key that is repeated, or integer that is too long, and its field."""
    most = sys.get_int_max_str_digits()
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        field, value = waiting.pop()
        inside: list[tuple[str, Any]] = []
        if isinstance(value, _Pairs):
            seen = set()
            for key, each in value:
                name = f"{field}.{key}" if field else key
                if key in seen:
                    return _finding(name, "the object has this key more than once")
                seen.add(key)
                inside.append((name, each))
        elif isinstance(value, list):
            inside = [(f"{field}[{at}]", each) for at, each in enumerate(value)]
        elif isinstance(value, _Digits) and (digits := len(value.lstrip("-"))) > most:
            return _finding(field, f"an integer of {digits} digits; at most {most} are read")
        waiting += reversed(inside)
    raise AssertionError("what the strict decoder refuses is found")


def _finding(field: str, reason: str) -> Finding:
    shown = field.encode(errors="replace").decode() or "body"  # half of a surrogate pair cannot be sent back
    return Finding(kind=INVALID_FIELD, detail=f"{shown[:_SHOWN_CHARS]}: {reason}", field=shown)
