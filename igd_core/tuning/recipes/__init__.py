"""Recipes: one file says where the rows come from, how to build the artifact, and how to tune the model.

description: a line for people
model: checkpoint, or `smollm2`; absent with tuning.from_config
data: source (amazon, ml-100k) and what it takes
build: what `BuildOptions` takes
tuning: what `TuningSettings` takes
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igd_core.artifact import BuildOptions, build_artifact, save_artifact
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.datasets.amazon import AmazonOptions, read_amazon
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.movielens import read_movielens
from igd_core.datasets.prepared import Preparation, write_prepared
from igd_core.datasets.rows import item_frequency
from igd_core.datasets.split import split_as
from igd_core.errors import InputError
from igd_core.tuning.mapping_files import read_mapping

if TYPE_CHECKING:
    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.interactions import Interactions

_FOLDER = Path(__file__).parent
_SOURCES = ("amazon", "ml-100k")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe file's parts.

    Attributes:
        name: of the file.
        description: a line for people.
        model: checkpoint to start from.
        data: ``source`` and its options; empty if artifact and rows are given.
        build: of the artifact.
        tuning: of the run.
    """

    name: str = ""
    description: str = ""
    model: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str | None:
        """The name of the data source, or None."""
        return self.data.get("source")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFolders:
    """What a recipe has prepared: the artifact's folder, the rows, and the folder for the run."""

    artifact: Path
    train: Path
    valid: Path
    run: Path


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_recipe(name: str) -> Recipe:
    """Read a packaged recipe by name, or a yaml file.

    Raises:
        InputError: there is none, or it is not a recipe.
    """
    path = _FOLDER / f"{name}.yaml" if name in recipe_names() else Path(name)
    if not path.is_file():
        raise InputError(f"recipe {name!r}: no such file, and not one of {', '.join(recipe_names())}")
    content = read_mapping(path)
    unknown = sorted(set(content) - {part.name for part in fields(Recipe)})
    if unknown:
        raise InputError(f"{path}: there is no part {unknown[0]!r} in a recipe")
    for part in ("data", "build", "tuning"):
        if not isinstance(content.get(part, {}), Mapping):
            raise InputError(f"{path}: {part} is not a mapping")
    recipe = Recipe(**{"name": path.stem, **content})
    if recipe.source not in (None, *_SOURCES):
        raise InputError(f"{path}: data source {recipe.source!r}; one of {', '.join(_SOURCES)}")
    return recipe


def prepare_recipe(recipe: Recipe, out: Path, *, files: Mapping[str, Path], tokenizer: Path) -> RecipeFolders:
    """Turn raw files into rows (``out/data``) and an artifact (``out/artifact``); what exists already is kept.

    Args:
        recipe: with a data source.
        out: folder for everything that the recipe makes.
        files: ``reviews`` and ``metadata`` of an Amazon recipe.
        tokenizer: directory of the checkpoint's tokenizer.

    Raises:
        InputError: a raw file is missing, or holds what cannot be used.
    """
    data, built = out / "data", out / "artifact"
    if not (data / "dataset.json").is_file():
        catalogue, interactions = _read_source(recipe, files)
        write_prepared(data, catalogue, interactions, _preparation(recipe))
    if not (built / "manifest.json").is_file():
        multi = json.loads((data / "dataset.json").read_text("utf-8"))["multi"]
        items = read_items(data / "items.csv", multi=multi).catalogue
        counted = read_interactions(data / "train_interactions.csv", items).data
        options = build_options(recipe)
        artifact = build_artifact(
            items.with_frequency(item_frequency(counted, items)), TitleTokenizer.from_directory(tokenizer), options
        )
        save_artifact(artifact, built)
    return RecipeFolders(artifact=built, train=data / "train.csv", valid=data / "valid.csv", run=out / "run")


def recipe_catalogue(recipe: Recipe, *, files: Mapping[str, Path] | None = None) -> Catalogue:
    """The catalogue of a recipe's source, counted in its training split alone, as in its artifact.

    Raises:
        InputError: a raw file is missing, or holds what cannot be used.
    """
    catalogue, interactions = _read_source(recipe, files or {})
    training = interactions.take(split_as(_preparation(recipe).split, interactions).train)
    return catalogue.with_frequency(item_frequency(training, catalogue))


def _read_source(recipe: Recipe, files: Mapping[str, Path]) -> tuple[Catalogue, Interactions]:
    if recipe.source == "ml-100k":
        movielens = read_movielens()
        return movielens.catalogue, movielens.interactions
    missing = [name for name in ("reviews", "metadata") if name not in files]
    if missing:
        raise InputError(f"{missing[0]}: recipe {recipe.name!r} needs the raw file")
    known = {option.name for option in fields(AmazonOptions)}
    options = {name: value for name, value in recipe.data.items() if name in known}
    unknown = sorted(set(recipe.data) - known - {"source", "split", "max_history"})
    if unknown:
        raise InputError(f"recipe {recipe.name!r}: data has no setting {unknown[0]!r}")
    amazon = read_amazon(files["reviews"], files["metadata"], AmazonOptions(**options))
    return amazon.catalogue, amazon.interactions


def _preparation(recipe: Recipe) -> Preparation:
    return Preparation(split=recipe.data.get("split", "time"), max_history=recipe.data.get("max_history", 10))


def build_options(recipe: Recipe) -> BuildOptions:
    """The options with which a recipe builds its artifact.

    Raises:
        InputError: an unknown setting.
    """
    known = {option.name for option in fields(BuildOptions)} - {"scorer"}  # which is counted from more than a catalogue
    unknown = sorted(set(recipe.build) - known)
    if unknown:
        raise InputError(f"recipe {recipe.name!r}: build has no setting {unknown[0]!r}")
    return BuildOptions(**{"name": recipe.name, **recipe.build})
