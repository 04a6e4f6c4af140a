from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from films import app_runner, film_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from films import Run

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer


@pytest.fixture(scope="session")
def films(tokenizer: TitleTokenizer) -> Artifact:
    return film_artifact(tokenizer)


@pytest.fixture
def run(films: Artifact, tokenizer: TitleTokenizer, tmp_path: Path) -> Run:
    return app_runner(films, tokenizer, tmp_path)
