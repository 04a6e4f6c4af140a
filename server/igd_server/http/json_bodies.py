"""Bodies of JSON: what cannot be read, or has two meanings, is refused with its place and the reason.

Of equal keys in one object, JSON's readers take the first, the last or both: such a body means what its sender did not
check, so it is refused, as a field is that there is not.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from igd_server.api.problems import INVALID_FIELD, MALFORMED_JSON, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SHOWN_CHARS = 128
_PLACED_CHARS = 1 << 16
"""The place of a repeated key is told in bodies up to this length: finding it takes ten times as long as reading."""


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
    except _Repeated as repeated:
        told = _finding([repeated.key], _REPEATED)
    except ValueError:
        told = _finding([], f"an integer of too many digits; at most {sys.get_int_max_str_digits()} are read")
    if len(text) > _PLACED_CHARS:
        return told
    found = _read(text, _LOOSE)  # valid JSON all the same, up to there
    return found if isinstance(found, Finding) else _refused(found)


_REPEATED = "the object has this key more than once"


class _Repeated(ValueError):  # noqa: N818 - never leaves this module
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key


class _Pairs(list[tuple[str, Any]]):
    """An object as it was written."""


class _Digits(str):
    """An integer as it was written."""

    __slots__ = ()


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        counted = Counter(key for key, _ in pairs)
        raise _Repeated(next(key for key, _ in pairs if counted[key] > 1))
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
    """The first key that is repeated, or integer that is too long, and its field; names nothing before it is found."""
    most = sys.get_int_max_str_digits()
    path: list[str | int] = []
    inside = [_entries([value])]
    while inside:
        for key, each, is_repeated in inside[-1]:
            if is_repeated:
                return _finding([*path, key][1:], _REPEATED)
            if isinstance(each, _Digits) and (digits := len(each.lstrip("-"))) > most:
                return _finding([*path, key][1:], f"an integer of {digits} digits; at most {most} are read")
            if isinstance(each, list):
                path.append(key)
                inside.append(_entries(each))
                break
        else:
            inside.pop()
            if path:
                path.pop()
    raise AssertionError("what the strict decoder refuses is found")


def _entries(value: list[Any]) -> Iterator[tuple[str | int, Any, bool]]:
    """Key, value and whether the key is repeated, of an object or an array."""
    if not isinstance(value, _Pairs):
        yield from ((at, each, False) for at, each in enumerate(value))
        return
    seen = set()
    for key, each in value:
        yield key, each, key in seen
        seen.add(key)


def _finding(path: Sequence[str | int], reason: str) -> Finding:
    name = ""
    for key in path:
        name += f"[{key}]" if isinstance(key, int) else f".{key[:_SHOWN_CHARS]}" if name else key[:_SHOWN_CHARS]
        if len(name) > _SHOWN_CHARS:
            break
    shown = name[:_SHOWN_CHARS].encode(errors="replace").decode() or "body"  # half of a surrogate pair cannot be sent
    return Finding(kind=INVALID_FIELD, detail=f"{shown}: {reason}", field=shown)
