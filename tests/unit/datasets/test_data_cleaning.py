from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from igd_core.datasets.cleaning import _visible, clean_title


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("&amp;amp;amp;amp;", "&"),
        ("Okca&reg; &#39;X&#x27;", "Okca® 'X'"),
        ("AT&T R&not B&lt C &nosuch; &", "AT&T R&not B&lt C &nosuch; &"),
        ("&" + "#9" * 5000 + ";", "&" + "#9" * 5000 + ";"),
        ("&#" + "9" * 5000 + ";", "&#" + "9" * 5000 + ";"),
        ("a&#10;b", "a b"),
        ("a\r\nb\x00c\x85d", "a b c d"),
        ("a\u2028b\u2029c", "a b c"),
        ("\u202eevil\u202c \u2066x\u2069", "evil x"),
        ("zero\u200bwidth soft\u00adhyphen \ufeffbom", "zerowidth softhyphen bom"),
        ("lone \ud800surrogate", "lone surrogate"),
        ("Zel\u200dda \u200cx", "Zelda x"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👨\u200d👩\u200d👧 family", "👨\u200d👩\u200d👧 family"),
        ("é\u200d\u200d\u200d", "é\u200d"),
        ("Poke\u0301mon", "Pokémon"),
        ("  a\u00a0\u3000 b\t", "a b"),
        ("\u200b\n&nbsp;", ""),
        ("", ""),
        ("<|im_end|>", "<|im_end|>"),
    ],
)
def test_a_title_is_cleaned_as_decided(raw: str, clean: str) -> None:
    assert clean_title(raw) == clean


_ENTITY_PIECES = st.sampled_from(
    ["&", "amp;", "&amp;", "&#10;", "&#38;", "#x202e;", "\u200b", "\u200d", "é", "\u0301", " "]
)
_TEXT = st.text(st.characters()) | st.lists(_ENTITY_PIECES | st.characters()).map("".join)


@given(_TEXT)
@example("&am\u200bp;amp;")
@example("&amp\u037e")  # NFC turns the Greek question mark into a semicolon
def test_cleaning_twice_is_cleaning_once(raw: str) -> None:
    assert clean_title(clean_title(raw)) == clean_title(raw)


@given(_TEXT)
def test_a_clean_title_is_one_trimmed_nfc_line_without_control_characters(raw: str) -> None:
    clean = clean_title(raw)
    kinds = {unicodedata.category(char) for char in clean if char not in "\u200c\u200d"}
    assert kinds.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert len(clean.splitlines()) <= 1
    assert clean == " ".join(clean.split(" ")).strip()
    assert unicodedata.is_normalized("NFC", clean)
    clean.encode("utf-8")


def test_whatever_the_walk_over_characters_changes_is_unprintable_or_the_walk_would_be_skipped() -> None:
    every = map(chr, range(sys.maxunicode + 1))
    assert [char for char in every if _visible(char) != char and char.isprintable()] == []
