"""Tuning by lists: rewards by slow arithmetic, the loss by plain passes over items, runs that learn, end and fail."""

from __future__ import annotations

import csv
import json
import math
import shutil
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from checkpoints import edit_config, edit_tensors
from factories import EOS
from hypothesis import given
from hypothesis import strategies as st
from oracles import next_tokens, path_probabilities
from safetensors.torch import load_file

from igd_core.cli.main import main
from igd_core.engines.tuned_prompt import TunedPrompt, read_tuned_prompt
from igd_core.errors import ArtifactError, DataError, InputError, ModelError, TuningError
from igd_core.ids import ItemIndex, LeafIndex
from igd_core.locked_folders import locked_folder
from igd_core.search.normalisation import Normalisation
from igd_core.tuning.backbone import Backbone, load_backbone
from igd_core.tuning.inputs import RunInputs
from igd_core.tuning.list_steps import ListRows, ListTuner
from igd_core.tuning.lists import best_step, tune_lists
from igd_core.tuning.rewards import advantages, discounted_gain, rewards
from igd_core.tuning.run import tune
from igd_core.tuning.settings import ListSettings, TuningSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.engines.embedded.checkpoint import Checkpoint

TEMPERATURE = 0.8
QUICK = ListSettings(
    group=8, batch=4, lr=3e-3, warmup_steps=2, validate_every=3, save_every=2, patience=9, epochs=4, kl=1e-3
)


def rewards_by_hand(group: Sequence[int], target: int) -> list[float]:
    if target not in group:
        return [0.0 for _ in group]
    total = sum(1 / math.log2(rank + 1) for rank, leaf in enumerate(group, start=1) if leaf != target)
    return [1.0 if leaf == target else -1 / math.log2(rank + 1) / total for rank, leaf in enumerate(group, start=1)]


def test_rewards_of_a_group_of_three_are_the_published_ones() -> None:
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    found = rewards(np.array([[5, 9, 2], [5, 9, 2]]), np.array([5, 7]))
    wanted = [[1.0, -second / (second + third), -third / (second + third)], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(found, np.array(wanted))


@given(order=st.permutations(range(9)), size=st.integers(2, 8), target=st.integers(0, 8))
def test_rewards_and_advantages_are_those_of_slow_arithmetic(order: list[int], size: int, target: int) -> None:
    group = order[:size]
    by_hand = rewards_by_hand(group, target)
    found = rewards(np.array([group]), np.array([target]))
    np.testing.assert_allclose(found[0], by_hand, atol=1e-12)
    spread = statistics.pstdev(by_hand)
    wanted = [(each - statistics.fmean(by_hand)) / spread if spread else 0.0 for each in by_hand]
    np.testing.assert_allclose(advantages(found)[0], wanted, atol=1e-9)
    rank = group.index(target) + 1 if target in group else 0
    assert discounted_gain(np.array([group]), np.array([target]))[0] == pytest.approx(
        1 / math.log2(rank + 1) if rank else 0.0
    )


@pytest.fixture(scope="module")
def model_dir(
    checkpoint_of: Callable[[str], Checkpoint],
    definition: dict[str, Any],
    small_artifact: Artifact,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A random model that says that it was tuned over children."""
    directory: Path = tmp_path_factory.mktemp("model")
    checkpoint_of("llama-fp32").model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    scored = Normalisation(normalise="children", temperature=TEMPERATURE)
    TunedPrompt.of(small_artifact.manifest.template, scored=scored).write(directory)
    return directory


@pytest.fixture
def backbone(model_dir: Path) -> Backbone:
    return load_backbone(str(model_dir), TuningSettings(), tokenizer_dir=None, device="cpu")


def tuner_of(backbone: Backbone, artifact: Artifact, **values: Any) -> ListTuner:
    chosen = ListSettings.read({"group": 6, "kl": 0.5, "warmup_steps": 0} | values)
    return ListTuner(backbone, artifact, chosen, temperature=TEMPERATURE, steps=100)


def list_rows(artifact: Artifact, rows: Sequence[tuple[list[int], int]]) -> ListRows:
    """From pairs of a history of items and a target leaf."""
    prompts = [artifact.prompt([ItemIndex(item) for item in history]) for history, _ in rows]
    return ListRows(prompts=prompts, target=np.array([leaf for _, leaf in rows]))


def paths_of(artifact: Artifact) -> list[tuple[int, ...]]:
    """The path of each leaf."""
    return [tuple(artifact.trie.path(LeafIndex(leaf))) for leaf in range(artifact.trie.num_leaves)]


def ranked_by_hand(model: Any, prompt: Sequence[int], artifact: Artifact) -> list[int]:
    """Every leaf, the most probable first."""
    paths = paths_of(artifact)
    odds = path_probabilities(model, prompt, paths, TEMPERATURE)
    assert sum(odds.values()) == pytest.approx(1.0, abs=1e-6)
    return sorted(range(len(paths)), key=lambda leaf: -odds[paths[leaf]])


def logprobs_at(model: Any, prompt: Sequence[int], artifact: Artifact, path: Sequence[int]) -> list[torch.Tensor]:
    """Log-probabilities of the tokens that may stand at each place of a path, by one plain pass."""
    logits = model(input_ids=torch.tensor([[*prompt, *path]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    paths = paths_of(artifact)
    return [
        torch.log_softmax(logits[at][next_tokens(paths, tuple(path[:at]))].double() / TEMPERATURE, dim=0)
        for at in range(len(path))
    ]


def loss_by_hand(model: Any, start: Any, rows: ListRows, groups: Any, artifact: Artifact, kl: float) -> torch.Tensor:
    """The loss as its formula reads: item after item, token after token, a plain pass for each."""
    paths, terms = paths_of(artifact), []
    for prompt, target, group in zip(rows.prompts, rows.target.tolist(), groups.tolist(), strict=True):
        by_hand = rewards_by_hand(group, target)
        spread = statistics.pstdev(by_hand)
        for leaf, reward in zip(group, by_hand, strict=True):
            advantage = (reward - statistics.fmean(by_hand)) / spread if spread else 0.0
            ours, theirs = (logprobs_at(each, prompt, artifact, paths[leaf]) for each in (model, start))
            logprob = sum(
                each[next_tokens(paths, paths[leaf][:at]).index(token)]
                for at, (token, each) in enumerate(zip(paths[leaf], ours, strict=True))
            )
            assert isinstance(logprob, torch.Tensor)
            ratio = torch.exp(logprob - logprob.detach())
            apart = sum((p.exp() * (p - q.detach())).sum() for p, q in zip(ours, theirs, strict=True))
            terms.append(-advantage * ratio + kl * apart)
    return torch.stack([torch.as_tensor(term) for term in terms]).mean()


def moved(model: Any, seed: int = 3) -> None:
    """Change every weight a little."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))


@pytest.mark.parametrize("kl", [0.5, 0.0])
@pytest.mark.parametrize("pack_tokens", [8, 4096])
def test_gradients_are_those_of_plain_passes_over_every_item(
    backbone: Backbone, model_dir: Path, small_artifact: Artifact, kl: float, pack_tokens: int
) -> None:
    start = load_backbone(str(model_dir), TuningSettings(), tokenizer_dir=None, device="cpu").plain.eval()
    tuner = tuner_of(backbone, small_artifact, kl=kl, pack_tokens=pack_tokens)
    moved(backbone.plain)
    rows = list_rows(small_artifact, [([1, 2], 0), ([3], 1), ([4, 5, 6], 2)])
    ranked = [ranked_by_hand(backbone.plain, prompt, small_artifact) for prompt in rows.prompts]
    rows.target[:] = [ranked[0][2], ranked[1][-1], ranked[2][5]]  # held, not held, held
    groups = np.array([each[:6] for each in ranked])
    divergence = tuner._gradients(rows, groups)
    ours = {name: weight.grad.clone() for name, weight in backbone.plain.named_parameters() if weight.grad is not None}
    backbone.plain.zero_grad()
    loss_by_hand(backbone.plain, start, rows, groups, small_artifact, kl).backward()
    theirs = {name: weight.grad for name, weight in backbone.plain.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert wanted is not None
        torch.testing.assert_close(ours[name], wanted, atol=2e-5 * float(wanted.abs().max()) + 1e-7, rtol=1e-3)
    assert (divergence > 1e-4) == (kl > 0)


def test_a_group_is_the_head_of_the_whole_catalogue_by_probability(
    backbone: Backbone, small_artifact: Artifact
) -> None:
    tuner = tuner_of(backbone, small_artifact)
    rows = list_rows(small_artifact, [([1, 2], 0), ([7], 0), ([4, 5, 6], 0)])
    for again in range(2):
        wanted = [ranked_by_hand(backbone.plain, prompt, small_artifact) for prompt in rows.prompts]
        leaves = small_artifact.trie.num_leaves
        assert tuner._sampler.lists(rows.prompts, leaves).tolist() == wanted, again
        moved(backbone.plain)  # the next lists are of the weights as they are then


def test_the_divergence_is_0_at_first_and_positive_afterwards(backbone: Backbone, small_artifact: Artifact) -> None:
    tuner = tuner_of(backbone, small_artifact, lr=1e-3)
    rows = list_rows(small_artifact, [([1, 2], 0), ([3], 1)])
    rows.target[:] = tuner._sampler.lists(rows.prompts, 3)[:, 2]
    found = [tuner.step(number, rows)["kl"] for number in (1, 2, 3)]
    assert found[0] == 0.0
    assert found[1] > 1e-7
    assert found[2] > found[1]


def test_a_target_that_is_listed_low_rises_to_the_top(backbone: Backbone, small_artifact: Artifact) -> None:
    tuner = tuner_of(backbone, small_artifact, lr=3e-3, kl=0.0)
    rows = list_rows(small_artifact, [([1, 2], 0), ([3], 1), ([4, 5, 6], 2)])
    rows.target[:] = tuner._sampler.lists(rows.prompts, 4)[:, 3]
    before = tuner.validate(rows)
    entries = [tuner.step(number, rows) for number in range(1, 13)]
    after = tuner.validate(rows)
    assert before["eval_ndcg"] == pytest.approx(1 / math.log2(5))
    assert after["eval_ndcg"] == 1.0
    assert after["eval_log_likelihood"] > before["eval_log_likelihood"]
    assert entries[0]["held"] == 1.0
    assert entries[0]["ndcg"] == pytest.approx(before["eval_ndcg"])
    assert entries[-1]["ndcg"] > entries[0]["ndcg"]


def test_the_log_likelihood_is_that_of_plain_passes(backbone: Backbone, small_artifact: Artifact) -> None:
    rows = list_rows(small_artifact, [([1, 2], 3), ([3], 1)])
    paths = paths_of(small_artifact)
    odds = [path_probabilities(backbone.plain, prompt, paths, TEMPERATURE) for prompt in rows.prompts]
    wanted = statistics.fmean(
        math.log(each[paths[leaf]]) for each, leaf in zip(odds, rows.target.tolist(), strict=True)
    )
    found = tuner_of(backbone, small_artifact).validate(rows)
    assert found["eval_log_likelihood"] == pytest.approx(wanted, abs=1e-5)


def test_rows_without_their_target_change_nothing_where_the_divergence_has_no_weight(
    backbone: Backbone, small_artifact: Artifact
) -> None:
    tuner = tuner_of(backbone, small_artifact, kl=0.0)
    rows = list_rows(small_artifact, [([1, 2], 0)])
    rows.target[:] = tuner._sampler.lists(rows.prompts, small_artifact.trie.num_leaves)[:, -1]
    before = {name: weight.clone() for name, weight in backbone.plain.state_dict().items()}
    entry = tuner.step(1, rows)
    assert (entry["held"], entry["ndcg"], entry["kl"], entry["grad_norm"]) == (0.0, 0.0, None, 0.0)
    assert all(torch.equal(before[name], weight) for name, weight in backbone.plain.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5**1.5, 0.5]),
    ],
)
def test_learning_rates_follow_the_schedule(
    backbone: Backbone, small_artifact: Artifact, schedule: str, wanted: list[float]
) -> None:
    chosen = ListSettings.read({"lr": 1.0, "warmup_steps": 2, "schedule": schedule})
    tuner = ListTuner(backbone, small_artifact, chosen, temperature=1.0, steps=6)
    assert [tuner._learning_rate(number) for number in range(1, 6)] == pytest.approx(wanted)


def test_a_step_moves_weights_by_its_own_learning_rate(backbone: Backbone, small_artifact: Artifact) -> None:
    tuner = tuner_of(backbone, small_artifact, lr=1e-3, warmup_steps=4, kl=0.0)
    rows = list_rows(small_artifact, [([1, 2], 0)])
    rows.target[:] = tuner._sampler.lists(rows.prompts, 3)[:, 2]
    before = {name: weight.clone() for name, weight in backbone.plain.state_dict().items()}
    assert tuner.step(1, rows)["lr"] == 2.5e-4
    furthest = max(float((weight - before[name]).abs().max()) for name, weight in backbone.plain.state_dict().items())
    assert furthest == pytest.approx(2.5e-4, rel=1e-2)  # AdamW's first step is the sign of the gradient


@pytest.fixture
def inputs(model_dir: Path, pristine_bundle: Path, small_artifact: Artifact, tmp_path: Path) -> RunInputs:
    ids = small_artifact.catalogue.item_ids
    rows = [(" ".join(ids[max(0, i - 3) : i]), ids[i]) for i in range(1, 9)]
    for name in ("train", "valid"):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("history_item_ids", "item_id"), *rows])
    return RunInputs(
        artifact=pristine_bundle, train=tmp_path / "train.csv", valid=tmp_path / "valid.csv",
        out=tmp_path / "run", model=str(model_dir), device="cpu",
    )  # fmt: skip


def changed(inputs: RunInputs, **values: Any) -> RunInputs:
    return RunInputs(**{name: getattr(inputs, name) for name in RunInputs.__slots__} | values)


def without_seconds(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if not name.startswith("seconds")} for entry in record["history"]
    ]


def test_a_run_that_was_ended_and_resumed_ends_with_the_same_weights(
    inputs: RunInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after = 5  # behind the checkpoints of steps 2, 3 and 4
    unbroken = tune_lists(changed(inputs, out=inputs.out.parent / "unbroken"), QUICK)
    assert unbroken["steps"] == 8
    assert best_step(unbroken["history"]) > 0
    step = ListTuner.step

    def ended(self: ListTuner, number: int, rows: ListRows) -> dict[str, Any]:
        if number > stop_after:
            raise KeyboardInterrupt
        return step(self, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ListTuner, "step", ended)
        with pytest.raises(KeyboardInterrupt):
            tune_lists(inputs, QUICK)
    assert json.loads((inputs.out / "run.json").read_text())["status"] == "running"
    assert [path.name for path in (inputs.out / "checkpoints").iterdir()] == ["checkpoint-4"]
    told: list[Sequence[str]] = []
    resumed = tune_lists(inputs, QUICK, resume=True, tell=told.append)
    assert resumed["status"] == "finished"
    assert len(told) == 1
    assert without_seconds(resumed) == without_seconds(unbroken)
    ours, theirs = (
        load_file(out / "model" / "model.safetensors") for out in (inputs.out, inputs.out.parent / "unbroken")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (inputs.out / "checkpoints").exists()
    assert tune_lists(inputs, QUICK, resume=True) == json.loads((inputs.out / "run.json").read_text())


def test_the_model_that_is_kept_says_how_it_is_scored_and_is_the_best(
    inputs: RunInputs, backbone: Backbone, small_artifact: Artifact, tmp_path: Path
) -> None:
    ids, histories = small_artifact.catalogue.item_ids, ([1, 2], [3], [4, 5, 6])
    best = [
        ranked_by_hand(backbone.plain, list_rows(small_artifact, [(each, 0)]).prompts[0], small_artifact)[0]
        for each in histories
    ]
    targets = [int(np.flatnonzero(small_artifact.leaf_of_item == leaf)[0]) for leaf in best]
    lines = [
        f"{' '.join(ids[item] for item in each)},{ids[target]}" for each, target in zip(histories, targets, strict=True)
    ]
    (tmp_path / "valid.csv").write_text("\n".join(["history_item_ids,item_id", *lines]), encoding="utf-8")
    record = tune_lists(inputs, QUICK.replaced(lr=1.0, patience=1, validate_every=1))  # such steps ruin a model
    assert record["history"][0]["eval_ndcg"] == 1.0
    assert best_step(record["history"]) == 0
    assert record["steps"] == 1
    assert record["rows"]["train"] == {"rows": 8, "shortened": 0}
    prompt = read_tuned_prompt(inputs.out / "model")
    assert prompt is not None
    assert prompt.scored == Normalisation(normalise="children", temperature=TEMPERATURE)
    assert inputs.model is not None
    before = load_file(f"{inputs.model}/model.safetensors")
    after = load_file(inputs.out / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_tunes_and_says_what_came_out(inputs: RunInputs, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "lists", "--artifact", inputs.artifact, "--train", inputs.train, "--valid", inputs.valid]
    words += ["--model", inputs.model, "--out", inputs.out, "--device", "cpu"]
    flags = "--group 8 --batch 4 --rows 6 --lr 3e-3"
    command = [*map(str, words), *flags.split()]
    assert main([*command, "--print-config"]) == 0
    assert "group = 8" in capsys.readouterr().out
    assert main(command) == 0
    told = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith(("st", "ro"))
    )
    assert told == {"steps": "2", "rows": "6"}
    assert main([*command, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["group"] == 8


def test_what_cannot_be_tuned_is_refused_in_one_line(inputs: RunInputs, small_artifact: Artifact) -> None:
    leaves = small_artifact.trie.num_leaves
    with pytest.raises(InputError, match=rf"^group: 200; the catalogue has {leaves} titles$"):
        tune_lists(inputs, QUICK.replaced(group=200))
    with pytest.raises(InputError, match=r"^group: 1 is not in 2\.\.1000$"):
        ListSettings.read({"group": 1})
    with pytest.raises(InputError, match=r"^model: a checkpoint tuned over children is needed"):
        tune_lists(changed(inputs, model=None), QUICK)
    inputs.out.mkdir()
    (inputs.out / "mine").touch()
    with pytest.raises(TuningError, match="exists and holds no run"):
        tune_lists(inputs, QUICK)


def test_a_folder_that_another_process_tunes_into_is_refused_and_a_lock_left_behind_is_not(inputs: RunInputs) -> None:
    with locked_folder(inputs.out), pytest.raises(DataError, match="another process is writing it"):
        tune_lists(inputs, QUICK)
    record = tune_lists(inputs, QUICK)
    with locked_folder(inputs.out):  # of a finished run only the record is read
        assert tune_lists(inputs, QUICK, resume=True) == record


def test_a_limit_of_tokens_that_never_shows_a_history_is_refused(inputs: RunInputs, small_artifact: Artifact) -> None:
    needed = len(small_artifact.prompt([])) + small_artifact.trie.depth
    told = f"a prompt without a history and the longest path take {needed} tokens"
    with pytest.raises(InputError, match=rf"^max_tokens: {needed - 1}; {told}$"):
        tune_lists(inputs, QUICK.replaced(max_tokens=needed - 1))
    assert not inputs.out.exists()
    record = tune_lists(inputs, QUICK.replaced(max_tokens=needed, epochs=1, rows=5))
    assert record["rows"]["train"] == {"rows": 5, "shortened": 5}
    assert record["rows"]["valid"] == {"rows": 8, "shortened": 8}


def test_a_model_with_too_few_positions_for_a_history_is_refused(inputs: RunInputs, tmp_path: Path) -> None:
    assert inputs.model is not None
    small = shutil.copytree(inputs.model, tmp_path / "small")
    edit_config(small, max_position_embeddings=12)
    with pytest.raises(InputError, match=r"^model: it has 12 positions; a prompt without a history"):
        tune_lists(changed(inputs, model=str(small)), QUICK)


def test_a_model_with_fewer_tokens_than_the_artifact_is_refused_before_anything_is_written(
    inputs: RunInputs, tmp_path: Path
) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:200]

    assert inputs.model is not None
    small = shutil.copytree(inputs.model, tmp_path / "small")
    edit_tensors(small, cut)
    edit_config(small, vocab_size=200)
    with pytest.raises(ArtifactError, match=r"^vocabulary: the artifact needs \d+, the model has 200$"):
        tune_lists(changed(inputs, model=str(small)), QUICK)
    assert not inputs.out.exists()


@pytest.mark.parametrize("said", ["vocabulary", None])
def test_a_model_that_was_not_tuned_over_children_is_refused(
    inputs: RunInputs, small_artifact: Artifact, said: str | None, tmp_path: Path
) -> None:
    model = tmp_path / "other"
    model.mkdir()
    if said is not None:
        TunedPrompt.of(small_artifact.manifest.template).write(model)
    found = "has normalise vocabulary" if said else "does not say what it was tuned over"
    with pytest.raises(InputError, match=rf"^model: .*other {found}; it must be children"):
        tune_lists(changed(inputs, model=str(model)), QUICK)


def test_rows_whose_target_is_unknown_are_refused_or_left_out(inputs: RunInputs, tmp_path: Path) -> None:
    with (tmp_path / "train.csv").open("a", encoding="utf-8") as file:
        file.write("item-1,no such item\n")
    with pytest.raises(DataError, match=r"^.*train\.csv.*no such item"):
        tune_lists(inputs, QUICK)
    (tmp_path / "none.csv").write_text("history_item_ids,item_id\nitem-1,no such item\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none\.csv: none of its 1 rows has an item of the catalogue$"):
        tune_lists(changed(inputs, train=tmp_path / "none.csv", on_unknown="drop"), QUICK)
    record = tune_lists(changed(inputs, on_unknown="drop"), QUICK.replaced(epochs=1))
    assert (record["rows"]["dropped"], record["rows"]["train"]["rows"]) == (1, 8)


def test_a_run_is_resumed_with_its_own_settings_alone(inputs: RunInputs) -> None:
    tune_lists(inputs, QUICK.replaced(epochs=1))
    with pytest.raises(InputError, match="settings: group was 8 in the run to resume, now 4"):
        tune_lists(inputs, QUICK.replaced(epochs=1, group=4), resume=True)
    with pytest.raises(InputError, match=r"^out: the run to resume is one of igd tune lists, not of igd tune$"):
        tune(inputs, TuningSettings(), resume=True)


def test_a_run_of_igd_tune_is_not_resumed_by_lists(inputs: RunInputs) -> None:
    tune(inputs, TuningSettings(normalise="children", epochs=1, batch=8, micro_batches=1))
    with pytest.raises(InputError, match=r"^out: the run to resume is one of igd tune, not of igd tune lists$"):
        tune_lists(inputs, QUICK, resume=True)


def test_figures_that_are_no_numbers_end_the_run_and_are_recorded(
    inputs: RunInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ListTuner, rows: ListRows, groups: object) -> float:
        del rows, groups
        for weight in self._model.parameters():
            weight.grad = torch.full_like(weight, math.nan)
        return 0.0

    with monkeypatch.context() as patch:
        patch.setattr(ListTuner, "_gradients", broken)
        with pytest.raises(TuningError, match=r"^step 1: the gradient's norm is nan"):
            tune_lists(inputs, QUICK)
    record = json.loads((inputs.out / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("failed", 0)
    assert record["error"].startswith("step 1: the gradient's norm is nan")


def test_a_model_whose_weights_are_no_numbers_is_refused(inputs: RunInputs, model_dir: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"].fill_(math.nan)

    edit_tensors(shutil.copytree(model_dir, tmp_path / "nan"), spoil)
    with pytest.raises(ModelError, match="not finite"):
        tune_lists(changed(inputs, model=str(tmp_path / "nan")), QUICK)
