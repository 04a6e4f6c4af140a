"""A SASRec in NumPy against GPT-2's own blocks in torch, and its distribution against the formula."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from igd_core.errors import CatalogueError, ModelFault
from igd_core.evaluation.sasrec import SASRec
from igd_core.evaluation.sasrec_part import calibrated, exported
from igd_core.evaluation.sasrec_settings import SASRecSettings
from igd_core.ids import ItemIndex
from igd_core.scorers.mass import BACKGROUND_ALONE
from igd_core.scorers.network import NetworkPart, NetworkRecord
from igd_core.scorers.options import ScorerOptions
from igd_core.scorers.record import ScorerRecord, check_options
from igd_core.scorers.sasrec import SASRecScorer, item_scores, log_softmax

NUM_ITEMS = 13
SETTINGS = SASRecSettings(width=12, layers=2, heads=3, length=5, epochs=1)


@pytest.fixture(scope="module")
def trained() -> SASRec:
    rng = np.random.default_rng(0)
    model = SASRec.train(
        [rng.integers(0, NUM_ITEMS, 7).astype(np.int32) for _ in range(40)],
        num_items=NUM_ITEMS,
        seed=1,
        settings=SETTINGS,
    )
    with torch.no_grad(), torch.random.fork_rng():  # hardly trained it is all but linear; this makes every part count
        torch.manual_seed(2)
        for parameter in model.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


@pytest.fixture(scope="module")
def part(trained: SASRec) -> NetworkPart:
    return exported(trained)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 9])
def test_scores_are_those_of_the_torch_module(trained: SASRec, part: NetworkPart, length: int) -> None:
    history = [ItemIndex(int(item)) for item in np.random.default_rng(length).integers(0, NUM_ITEMS, length)]
    found = item_scores(part, history)
    assert found.shape == (min(length, SETTINGS.length), NUM_ITEMS)
    assert found[-1] == pytest.approx(trained.scores([history])[0], rel=1e-5, abs=1e-5)
    assert item_scores(part, history, only_last=True)[0] == pytest.approx(found[-1], rel=1e-6, abs=1e-6)
    first = history[-SETTINGS.length :][:1]
    assert found[0] == pytest.approx(trained.scores([first])[0], rel=1e-5, abs=1e-5)  # no look at later items


def test_mass_is_a_softmax_with_temperature_beside_popularity(part: NetworkPart) -> None:
    network = replace(part.network, temperature=1.7, background=0.125)
    scorer = SASRecScorer(part=replace(part, network=network), fingerprint="")
    history = [ItemIndex(3), ItemIndex(7)]
    mass = scorer.mass(history)
    mass.check(NUM_ITEMS)
    powers = [math.exp(score / 1.7) for score in item_scores(part, history)[-1]]
    assert mass.items is None
    assert mass.background == 0.125
    assert mass.mass.tolist() == pytest.approx([0.875 * each / sum(powers) for each in powers])
    assert np.array_equal(mass.mass, scorer.mass(history).mass)
    assert scorer.mass([]) is BACKGROUND_ALONE


def test_scores_that_overflow_are_a_fault_of_the_model(part: NetworkPart) -> None:
    broken = {**part.tensors, "norm_weight": np.full_like(part.tensors["norm_weight"], 3e38)}
    with pytest.raises(ModelFault, match="not finite"), np.errstate(over="ignore", invalid="ignore"):
        SASRecScorer(part=replace(part, tensors=broken), fingerprint="").mass([ItemIndex(1)])


def test_temperature_and_background_make_what_was_held_out_likeliest(part: NetworkPart) -> None:
    held_out = [[1, 2, 3], [4, 5, 6, 7], [2, 2]]
    popularity = np.full(NUM_ITEMS, 1 / NUM_ITEMS)
    chosen = calibrated(part, held_out, popularity).network

    def likelihood(temperature: float, background: float) -> float:
        total = 0.0
        for window in held_out:
            for at, target in enumerate(window[1:], start=1):
                share = np.exp(log_softmax(item_scores(part, window[:at])[-1] / temperature))[target]
                total += math.log((1 - background) * share + background / NUM_ITEMS)
        return total

    best = likelihood(chosen.temperature, chosen.background)
    for temperature in (0.5, 1.0, 1.5, 2.0):
        for background in (0.001, 0.1, 0.5):
            assert likelihood(temperature, background) <= best + 1e-9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0; 1 to 1024"),
        ({"width": 1025}, "width is 1025"),
        ({"layers": True}, "layers is True"),
        ({"heads": 5}, "heads is 5; no divisor of the width 12"),
        ({"length": 4097}, "length is 4097"),
        ({"temperature": 0.0}, "temperature is 0.0; 0.01 to 100"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"background": math.nan}, "background is nan"),
        ({"background": 0}, "background is 0; 1e-06 to 1"),
    ],
)
def test_a_network_that_cannot_be_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    sizes = {"width": 12, "layers": 2, "heads": 3, "length": 5, "temperature": 1.0, "background": 0.1}
    with pytest.raises(CatalogueError, match=rf"scorer\.network\.{message}"):
        NetworkRecord(**{**sizes, **changes})  # type: ignore[arg-type]


def test_a_tensor_that_is_not_a_networks_is_named(part: NetworkPart) -> None:
    assert part.fault(NUM_ITEMS) is None
    assert part.fault(NUM_ITEMS + 1) == "item"
    for name, tensor in part.tensors.items():
        for wrong in (tensor[..., :-1], tensor.astype(np.float64), np.full_like(tensor, np.nan), None):
            tensors = {**part.tensors, name: wrong}
            assert NetworkPart(network=part.network, tensors=tensors).fault(NUM_ITEMS) == name  # type: ignore[arg-type]


def test_the_fingerprint_tells_networks_apart(part: NetworkPart) -> None:
    made = set()
    for network in (part.network, replace(part.network, temperature=2.0), replace(part.network, background=0.5)):
        options = ScorerOptions(kind="sasrec", makers={"sasrec": lambda _catalogue, _sequences: part})
        record = ScorerRecord.of(options, network)
        assert record.to_json()["network"] == asdict(network)
        made |= {record.scorer(replace(part, network=network), sha256=sha256).fingerprint for sha256 in ("a", "b")}
    assert len(made) == 6


def test_a_kind_gets_its_own_arrays_and_settings_alone(part: NetworkPart) -> None:
    def maker(_catalogue: object, _sequences: object) -> NetworkPart:
        return part

    check_options(ScorerOptions(kind="sasrec", makers={"sasrec": maker}))
    for name in ("decay", "backoff", "ridge"):
        with pytest.raises(CatalogueError, match=rf"scorer\.{name} is 0\.5; sasrec has none"):
            check_options(ScorerOptions(kind="sasrec", makers={"sasrec": maker}, **{name: 0.5}))  # type: ignore[arg-type]
    with pytest.raises(CatalogueError, match=r"scorer\.network is None; the sizes of a network are needed"):
        ScorerRecord(kind="sasrec", gamma=0.0, mixture="linear")
    with pytest.raises(CatalogueError, match=r"scorer\.makers are of \[\]; sasrec and given need one"):
        check_options(ScorerOptions(kind="sasrec"))
    with pytest.raises(CatalogueError, match="arrays of another kind than transitions"):
        ScorerRecord.of(ScorerOptions(kind="transitions"), 3).scorer(part, sha256="")
