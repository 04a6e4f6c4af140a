"""Read numbers as people write them: ``12,99``, ``1.299,00``, ``1 299``, ``12,-``, ``€ 12.99``, ``12,99 EUR``.

Only a convention tells what ``1,299`` is: 1299 with a decimal point, 1.299 with a decimal comma. So no convention is
guessed; if one would make a column numeric, a message names it (`read_by`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

Decimal = Literal[",", "."]

NAMES: Final[dict[Decimal, str]] = {",": "comma", ".": "point"}
"""The name of each convention, by the character before the fraction."""
DECIMALS: Final[dict[str, Decimal]] = {name: sign for sign, name in NAMES.items()}
"""The character before the fraction, by the name that flags and schemas use."""
PLAIN = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
"""A number as programs write it, which needs no convention."""
_CURRENCY = (
    r"(?:US|CA|AU|NZ|HK)?\p{Sc}|EUR|USD|GBP|CHF|SEK|NOK|DKK|ISK|PLN|CZK|HUF|RON|BGN|TRY|UAH|RUB|JPY|CNY|INR|BRL|AUD|CAD"
    r"|NZD|MXN|ZAR|kr\.?|zł|Kč|Ft|lei|SFr\.|Fr\."
)
_BLANK = r"[\s\x{a0}\x{202f}\x{2009}]"
_AROUND = rf"^([-−]?){_BLANK}*(?:{_CURRENCY}){_BLANK}*|{_BLANK}*(?:{_CURRENCY})$"
_PERHAPS = (
    rf"^[-−]?{_BLANK}*(?:{_CURRENCY})?{_BLANK}*[-−]?[0-9][0-9eE+.,'’ \x{{a0}}\x{{202f}}\x{{2009}}-]*(?:{_CURRENCY})?$"
)
"""Matches whatever may be a number under some convention; one look rejects all else."""
_GROUPS: Final[dict[Decimal, tuple[str, ...]]] = {
    ",": (r"\.", r"[ \x{a0}\x{202f}\x{2009}]", "['’]"),
    ".": (",", r"[ \x{a0}\x{202f}\x{2009}]", "['’]"),
}
_BETWEEN: Final[dict[Decimal, str]] = {
    ",": r"[. \x{a0}\x{202f}\x{2009}'’]",
    ".": r"[, \x{a0}\x{202f}\x{2009}'’]",
}


def plain_numbers(cells: pa.Array, decimal: Decimal | None) -> pa.Array:
    """Rewrite the numbers of a convention as programs write them; other cells stay as they are.

    A cell that is a number only as programs write it (``12.99`` where the decimal sign is a comma) becomes ``?``, which
    is no number. Where cells name currencies, only those with the commonest are numbers, since amounts of several
    cannot be compared.

    Args:
        cells: text without surrounding white space.
        decimal: the character before a fraction; None leaves all cells as they are.
    """
    if decimal is None:
        return cells
    bare = pc.replace_substring_regex(cells, pattern=_AROUND, replacement=r"\1")
    bare = pc.replace_substring(bare, "−", "-")
    point = rf"\{decimal}"
    whole = "|".join(["[0-9]+", *(f"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+" for group in _GROUPS[decimal])])
    number = rf"^-?(?:{whole})(?:{point}(?:[0-9]+|--?))?(?:[eE][+-]?[0-9]+)?$"
    fits = pc.match_substring_regex(bare, number)
    fits = pc.and_(fits, _of_commonest_currency(cells, fits))
    read = pc.replace_substring_regex(bare, _BETWEEN[decimal], "")
    read = pc.replace_substring_regex(pc.replace_substring(read, decimal, "."), r"\.--?$", "")
    others = pc.if_else(pc.match_substring_regex(cells, PLAIN), pa.scalar("?"), cells)
    return pc.if_else(fits, read, others)


def read_by(cells: pa.Array, decimal: Decimal | None) -> dict[Decimal, NDArray[np.bool_]]:
    """For each other convention, which cells it reads as numbers and this one does not; ``(n,)`` bool.

    Conventions that read no such cell are omitted.
    """
    perhaps = pc.fill_null(pc.match_substring_regex(cells, _PERHAPS), False)
    places = np.flatnonzero(perhaps.to_numpy(zero_copy_only=False))
    if not len(places):  # usually: a column of words costs one pass
        return {}
    some = cells.take(pa.array(places))
    plain = _is_plain(plain_numbers(some, decimal))
    if plain.all():
        return {}
    found = {}
    for other in NAMES:
        if other != decimal and (read := _is_plain(plain_numbers(some, other)) & ~plain).any():
            found[other] = np.zeros(len(cells), bool)
            found[other][places[read]] = True
    return found


def flag_of(conventions: Iterable[Decimal]) -> str:
    """A message's hint: ``--decimal comma reads such cells as numbers``; empty for no convention."""
    names = [NAMES[each] for each in conventions]
    return f"--decimal {' or '.join(names)} reads such cells as numbers" if names else ""


def _is_plain(cells: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.fill_null(pc.match_substring_regex(cells, PLAIN), False).to_numpy(
        zero_copy_only=False
    )
    return found.copy()


def _of_commonest_currency(cells: pa.Array, fits: pa.Array) -> pa.Array:
    """Whether each cell names the currency of most fitting cells, or none."""
    named = pc.struct_field(pc.extract_regex(cells, rf"(?P<currency>{_CURRENCY})"), "currency")
    counts = pc.value_counts(pc.drop_null(named.filter(pc.fill_null(fits, False))))
    if len(counts) < 2:
        return pc.fill_null(fits, False)
    commonest = max(counts.to_pylist(), key=lambda each: int(each["counts"]))["values"]
    return pc.or_(pc.is_null(named), pc.fill_null(pc.equal(named, commonest), False))
