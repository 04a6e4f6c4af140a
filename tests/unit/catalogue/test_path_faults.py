"""What people are told of a text without a token path, and of texts and columns that are none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from igd_core.catalogue.attribute_columns import ColumnValues
from igd_core.catalogue.items import Catalogue
from igd_core.catalogue.token_paths import FaultKind, PathFault
from igd_core.errors import CatalogueError


@pytest.mark.parametrize(
    ("kind", "what", "reason", "summary"),
    [
        (
            "no piece",
            "千",
            "the tokenizer has no piece for '千'",
            "holds characters that the tokenizer has no piece for",
        ),
        (
            "nothing",
            "",
            "the tokenizer leaves nothing of its text",
            "leaves nothing when the tokenizer reads it",
        ),
        (
            "control token",
            "<|im_end|>",
            "its text would hold the control token '<|im_end|>'",
            "would hold a control token",
        ),
        ("line break", "\n", "its text would hold the line break '\\n'", "would hold a line break"),
    ],
)
def test_a_fault_names_what_is_wrong_and_a_summary_leaves_the_text_out(
    kind: FaultKind, what: str, reason: str, summary: str
) -> None:
    fault = PathFault(item=3, kind=kind, what=what)
    assert (fault.reason, fault.summary) == (reason, summary)


def test_a_lone_surrogate_is_no_text_and_is_named() -> None:
    with pytest.raises(CatalogueError, match=r"^title 'a\\ud800' is no text: it holds a lone surrogate$"):
        Catalogue.build(item_ids=["1"], titles=["a\ud800"], frequency=np.ones(1, np.int64))


def test_a_stored_column_is_equal_to_any_sequence_of_its_values() -> None:
    column = ColumnValues(pa.array([1, None, 3]))
    assert column == [1, None, 3]
    assert column == (1, None, 3)
    assert column != [1, None]
    assert column != [1, None, 4]
    assert column != "abc"
    assert column != 3
