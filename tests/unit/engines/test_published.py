"""Models as they are published, and opened beside another: one thread, no weight left behind."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from adapters import save_adapter
from checkpoints import random_model, write_checkpoint
from factories import tiny_checkpoint

from igd_core.engines.open import EngineOptions, checkpoint_sha256, open_beside, open_engine
from igd_core.engines.published import describe_model
from igd_core.errors import EngineClosed, InputError, ModelError
from igd_core.ids import ROOT, ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender
from igd_core.search.session import Scoring

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, definition: dict[str, Any], tokenizer: TitleTokenizer) -> Path:
    """A checkpoint, and beside it an adapter of it and another checkpoint."""
    directory: Path = tmp_path_factory.mktemp("published") / "base"
    model = tiny_checkpoint("llama-fp32", tokenizer).model
    write_checkpoint(directory, model, definition)
    write_checkpoint(directory.parent / "other", random_model(model.config, seed=23), definition)
    save_adapter(directory.parent / "run" / "adapter", directory, seed=5)
    return directory


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, to change, in the folder of a run."""
    copy: Path = shutil.copytree(base.parent / "run", tmp_path / "mild") / "adapter"
    return copy


def test_a_checkpoint_is_known_by_what_an_engine_knows_it_by(base: Path, tokenizer: TitleTokenizer) -> None:
    (base / "notes.txt").write_text("no part of it")
    found = describe_model(base)
    assert (found.kind, found.name, found.base) == ("checkpoint", "base", "")
    assert found.content == checkpoint_sha256(base)
    assert found.tokenizer_sha256 == tokenizer.fingerprint
    assert "notes.txt" not in found.parts


def test_an_adapters_base_is_given_or_recorded_or_named_by_its_configuration(adapter: Path, base: Path) -> None:
    content = checkpoint_sha256(base)
    found = describe_model(adapter)  # peft wrote the folder into adapter_config.json
    assert (found.kind, found.name, found.base, found.tokenizer_sha256) == ("adapter", "mild", content, "")
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = "nobody/knows"
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=r"base: .* was tuned on 'nobody/knows', which is no folder here; give --base"):
        describe_model(adapter)
    assert describe_model(adapter, base=base).base == content
    (adapter.parent / "run.json").write_text(json.dumps({"model_sha256": "e" * 64}), encoding="utf-8")
    assert describe_model(adapter).base == "e" * 64
    (adapter.parent / "run.json").write_text(json.dumps({"model_sha256": None}), encoding="utf-8")
    with pytest.raises(InputError, match="give --base"):
        describe_model(adapter)


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("no folder", InputError, "is no folder"),
        ("nothing", ModelError, "neither config.json nor adapter_config.json"),
        ("pickle", ModelError, "no safetensors there"),
        ("damaged", ModelError, "missing"),
        ("base of a checkpoint", InputError, "base: .* is a checkpoint, which has none"),
        ("name", InputError, "name: 'a b' is not 1 to 64"),
        ("file", ModelError, "'odd name.json' is no file of a model"),
    ],
)
def test_what_no_engine_could_load_is_not_published(
    base: Path, tmp_path: Path, case: str, error: type[Exception], message: str
) -> None:
    folder = shutil.copytree(base, tmp_path / "copy")
    options: dict[str, Any] = {}
    if case == "no folder":
        folder = tmp_path / "none"
    elif case == "nothing":
        (folder / "config.json").unlink()
    elif case == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif case == "damaged":
        config = json.loads((folder / "config.json").read_text("utf-8")) | {"num_hidden_layers": 3}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    elif case == "file":
        (folder / "odd name.json").write_text("{}")
    else:
        options = {"name": "a b"} if case == "name" else {"base": base}
    with pytest.raises(error, match=message):
        describe_model(folder, **options)


async def test_models_beside_each_other_share_a_thread_and_each_lets_go_of_its_weights(
    base: Path, artifact: Artifact
) -> None:
    query = Query(history=[ItemIndex(3), ItemIndex(4)], k=5)

    async def ranked(engine: Any, adapter: str | None = None) -> list[ItemIndex]:
        found = await Recommender(artifact, engine).recommend(query, adapter=adapter)
        return [each.item for each in found.items]

    own = open_engine(EngineOptions(model=base, device="cpu", adapters={"mild": base.parent / "run" / "adapter"}))
    merged = open_beside(
        EngineOptions(model=base, device="cpu", name="renamed"), own.engine, merged=base.parent / "run" / "adapter"
    )
    first: Any = own.engine
    second: Any = merged.engine
    for engine in (first, second):
        await engine.load(artifact)
    assert second._thread is first._thread
    assert second.model_id == "renamed"
    assert second.identity.fingerprint() == first.identity.fingerprint("mild")
    alone = await ranked(second)
    assert alone == await ranked(first, "mild") != await ranked(first)
    model, late = first._checkpoint.model, await first.open(artifact.version, [1, 2], Scoring(alpha=0.2, keep=2))
    await first.close()
    await first.close()
    assert not first.stats().healthy
    assert [each for each in model.parameters() if each.numel()] == []
    with pytest.raises(EngineClosed, match="the engine is closed"):
        await late.expand([ROOT])
    assert second.stats().healthy
    assert await ranked(second) == alone
    third: Any = open_beside(EngineOptions(model=base.parent / "other", device="cpu"), first).engine
    assert third._thread is not first._thread  # which may have ended
    for engine in (second, third):
        await engine.close()
        assert engine._thread.closed
    with pytest.raises(ModelError, match="engine 'vllm' runs the one checkpoint that it was started with"):
        open_beside(EngineOptions(model=base, engine="vllm"), first)
