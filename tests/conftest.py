"""Parts that many tests share; each is made once, and none is changed by a test."""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from factories import EOS, make_catalogue, tiny_checkpoint, tokenizer_definition
from hypothesis import settings

from igd_core.artifact import Artifact, BuildOptions, build_artifact, save_artifact
from igd_core.catalogue.tokenization import TitleTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from igd_core.engines.embedded.checkpoint import Checkpoint


# Two cores are shared: the time an example takes says nothing.
settings.register_profile("igd", deadline=None)
settings.load_profile("igd")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models are faster without hand-overs between threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def definition() -> dict[str, Any]:
    """What `tokenizer.json` of the tests' tokenizer holds."""
    return tokenizer_definition()


@pytest.fixture(scope="session")
def tokenizer(definition: dict[str, Any]) -> TitleTokenizer:
    return TitleTokenizer(definition, EOS)


@pytest.fixture(scope="session")
def artifact(tokenizer: TitleTokenizer) -> Artifact:
    """150 items, some of them of equal titles, some cold."""
    return build_artifact(make_catalogue(150), tokenizer, BuildOptions(name="films", instruction="Films, in order:\n"))


@pytest.fixture(scope="session")
def small_artifact(tokenizer: TitleTokenizer) -> Artifact:
    """24 items: a few kilobytes on disk."""
    return build_artifact(make_catalogue(24), tokenizer, BuildOptions(name="small"))


@pytest.fixture(scope="session")
def pristine_bundle(small_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_artifact`` on disk; no test leaves it changed."""
    directory = tmp_path_factory.mktemp("bundle") / "small"
    save_artifact(small_artifact, directory)
    return directory


@pytest.fixture
def bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``pristine_bundle`` to damage."""
    return shutil.copytree(pristine_bundle, tmp_path / "bundle")


@pytest.fixture(scope="session")
def checkpoint_of(tokenizer: TitleTokenizer) -> Callable[[str], Checkpoint]:
    """Tiny random models by kind (`factories.MODEL_KINDS`)."""
    return functools.cache(lambda kind: tiny_checkpoint(kind, tokenizer))
