"""How titles, and other texts that spell items, are cleaned: one function for every file and data set.

A cleaned title is both shown to people and spelled by the model. After a change of these rules the same items get other
titles, so a catalogue built again gets another version; versions already published keep the titles they have.
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.entities import html5

# A semicolon is required: without it "R&not" would become "R¬". At most 8 digits: `int` refuses very long ones.
_ENTITY = re.compile(r"&(?:#[0-9]{1,8}|#[xX][0-9a-fA-F]{1,8}|[A-Za-z][A-Za-z0-9]*);")
_BREAKS = frozenset({"Cc", "Zl", "Zp"})
_INVISIBLE = frozenset({"Cf", "Cs"})
_JOINERS = "\u200c\u200d"
# Joiners shape Persian, Indic scripts and emoji, always after a character of theirs.
_STRAY_JOINER = re.compile(rf"(?<![^\x00-\x7f\s{_JOINERS}])[{_JOINERS}]")


def clean_title(raw: str) -> str:
    r"""Clean a title: one line, nothing invisible, no stray white space. The result may be empty.

    - HTML entities that end in a semicolon are unescaped (``&amp;``, ``&reg;``, ``&#39;``).
    - Control characters, line and paragraph separators turn into spaces. No newline survives: it ends an item's path.
    - Format characters (bidi overrides, zero-width spaces, soft hyphens) and lone surrogates vanish. The joiners ZWJ
      and ZWNJ stay after a non-ASCII character, where scripts and emoji need them.
    - Unicode NFC; each run of white space is one space, none at the ends.

    Repeated until nothing changes (an unescaped entity may hold another: ``&amp;amp;``), so cleaning twice is cleaning
    once, and what `igd data prepare` wrote reads back the same.

    >>> clean_title(" Tom &amp;amp;\n Jerry&reg; ")
    'Tom & Jerry®'
    """
    text = _clean_once(raw)
    while text != raw:
        raw, text = text, _clean_once(text)
    return text


def _clean_once(raw: str) -> str:
    text = _ENTITY.sub(_unescape, raw)
    # Most titles are printable and skip the walk over characters: all that `_visible` changes is unprintable.
    if not text.isprintable():
        text = _STRAY_JOINER.sub("", "".join(map(_visible, text)))
    return " ".join(unicodedata.normalize("NFC", text).split())


def _unescape(entity: re.Match[str]) -> str:
    text = entity.group()
    return html.unescape(text) if text[1] == "#" or text[1:] in html5 else text


def _visible(char: str) -> str:
    category = unicodedata.category(char)
    if category in _BREAKS:
        return " "
    return "" if category in _INVISIBLE and char not in _JOINERS else char
