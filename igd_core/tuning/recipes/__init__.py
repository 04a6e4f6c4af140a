"""Recipes: one file says where the rows come from, how to build the artifact, and how to tune the model.

description: a line for people
model: checkpoint, or `smollm2`; absent with tuning.from_config
tokenizer: `whole`, as it is; or `pruned`, cut down to what the catalogue uses
data: source (amazon, ml-100k), what `Preparation` takes, and of amazon what `AmazonOptions` takes
build: what `BuildOptions` takes; scorer: what `ScorerOptions` takes
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
from igd_core.datasets.amazon import read_amazon
from igd_core.datasets.interactions_file import read_interactions
from igd_core.datasets.items_file import read_items
from igd_core.datasets.movielens import read_movielens
from igd_core.datasets.options import AmazonOptions, Preparation
from igd_core.datasets.prepared import write_prepared
from igd_core.datasets.rows import item_frequency
from igd_core.datasets.sequences import training_sequences
from igd_core.datasets.split import split_as
from igd_core.errors import InputError
from igd_core.scorers.record import check_options
from igd_core.tuning.mapping_files import read_mapping
from igd_core.tuning.pruning import prune_tokenizer

if TYPE_CHECKING:
    from igd_core.artifact import Artifact
    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.interactions import Interactions
    from igd_core.datasets.rows import HistoryRows

_FOLDER = Path(__file__).parent
_SOURCES = ("amazon", "ml-100k")
_TOKENIZERS = ("whole", "pruned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe file's parts.

    Attributes:
        name: of the file.
        description: a line for people.
        model: checkpoint to start from.
        tokenizer: ``whole``, or ``pruned`` to what the catalogue uses, for models from scratch.
        data: ``source`` and its options; empty if artifact and rows are given.
        build: of the artifact.
        tuning: of the run.
    """

    name: str = ""
    description: str = ""
    model: str | None = None
    tokenizer: str = "whole"
    data: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str | None:
        """The name of the data source, or None."""
        return self.data.get("source")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFolders:
    """What a recipe has prepared: the folders of tokenizer and artifact, the rows, and the folder for the run."""

    tokenizer: Path
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
    if recipe.tokenizer not in _TOKENIZERS:
        raise InputError(f"{path}: tokenizer {recipe.tokenizer!r}; one of {', '.join(_TOKENIZERS)}")
    if recipe.tokenizer == "pruned" and recipe.model is not None:
        raise InputError(f"{path}: tokenizer 'pruned': the model {recipe.model!r} has a vocabulary of its own")
    return recipe


def prepare_recipe(recipe: Recipe, out: Path, *, files: Mapping[str, Path], tokenizer: Path) -> RecipeFolders:
    """Turn raw files into rows (``out/data``) and an artifact (``out/artifact``); what exists already is kept.

    A tokenizer that is to be pruned is written to ``out/tokenizer``.

    Args:
        recipe: with a data source.
        out: folder for everything that the recipe makes.
        files: ``reviews`` and ``metadata`` of an Amazon recipe.
        tokenizer: directory of the checkpoint's tokenizer, or of the one to prune.

    Raises:
        InputError: a raw file is missing, or holds what cannot be used; or a setting of the recipe's.
    """
    data, built = out / "data", out / "artifact"
    options, preparation = build_options(recipe), _data(recipe)
    if not (data / "dataset.json").is_file():
        catalogue, interactions = _read_source(recipe, preparation, files)
        write_prepared(data, catalogue, interactions, preparation)
    pruned = out / "tokenizer" if recipe.tokenizer == "pruned" else tokenizer
    if not (built / "manifest.json").is_file():
        multi = json.loads((data / "dataset.json").read_text("utf-8"))["multi"]
        items = read_items(data / "items.csv", multi=multi).catalogue
        training = read_interactions(data / "train_interactions.csv", items).data
        if pruned != tokenizer and not pruned.exists():
            whole = _built(items, training, TitleTokenizer.from_directory(tokenizer), options)
            prune_tokenizer(whole, tokenizer, pruned)
        save_artifact(_built(items, training, TitleTokenizer.from_directory(pruned), options), built)
    return RecipeFolders(
        tokenizer=pruned, artifact=built, train=data / "train.csv", valid=data / "valid.csv", run=out / "run"
    )


def recipe_artifact(recipe: Recipe, tokenizer: TitleTokenizer, *, files: Mapping[str, Path] | None = None) -> Artifact:
    """The artifact that `prepare_recipe` makes, straight from the source; ``tokenizer`` is taken as it is.

    Raises:
        InputError: a raw file is missing, or holds what cannot be used; or a setting of the recipe's.
    """
    options, preparation = build_options(recipe), _data(recipe)
    catalogue, interactions = _read_source(recipe, preparation, files or {})
    split = split_as(preparation.split, interactions, held_out=preparation.held_out)
    training = interactions.take(split.train)
    return _built(catalogue, training, tokenizer, options)


def _built(
    items: Catalogue, training: Interactions | HistoryRows, tokenizer: TitleTokenizer, options: BuildOptions
) -> Artifact:
    """The artifact of ``items``, counted in the training split alone."""
    counted = items.with_frequency(item_frequency(training, items))
    sequences = [] if options.scorer is None else training_sequences(training)
    return build_artifact(counted, tokenizer, options, sequences=sequences)


def _read_source(recipe: Recipe, options: Preparation, files: Mapping[str, Path]) -> tuple[Catalogue, Interactions]:
    if not isinstance(options, AmazonOptions):
        movielens = read_movielens()
        return movielens.catalogue, movielens.interactions
    missing = [name for name in ("reviews", "metadata") if name not in files]
    if missing:
        raise InputError(f"{missing[0]}: recipe {recipe.name!r} needs the raw file")
    amazon = read_amazon(files["reviews"], files["metadata"], options)
    return amazon.catalogue, amazon.interactions


class _AmazonData(Preparation, AmazonOptions):
    """What ``data`` says of the reviews, and of what they become."""


def _data(recipe: Recipe) -> Preparation:
    """How the source is read, and how its interactions become rows.

    Raises:
        InputError: an unknown setting of the source, or a value of another type or out of range.
    """
    model = _AmazonData if recipe.source == "amazon" else Preparation
    return model.read({name: value for name, value in recipe.data.items() if name != "source"}, where="data")


def build_options(recipe: Recipe) -> BuildOptions:
    """The options with which a recipe builds its artifact.

    Raises:
        InputError: an unknown setting, or a value of another type or out of range.
    """
    options = BuildOptions.read({"name": recipe.name, **recipe.build}, where="build")
    if options.scorer is not None:
        check_options(options.scorer)
    return options
