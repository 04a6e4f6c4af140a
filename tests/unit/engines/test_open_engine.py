from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from igd_core.engines.open import EngineOptions, open_engine
from igd_core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def test_an_engine_of_no_known_name_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="engine 'abacus': one of tree"):
        open_engine(EngineOptions(model=tmp_path, engine="abacus"))
