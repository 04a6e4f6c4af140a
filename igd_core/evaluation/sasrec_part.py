"""From a trained SASRec to what an artifact keeps: its tensors, and how its scores become a calibrated distribution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from igd_core.errors import CatalogueError
from igd_core.evaluation.sasrec import SASRec
from igd_core.scorers.network import MAX_ITEMS, NetworkPart, NetworkRecord
from igd_core.scorers.sasrec import item_scores, log_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.evaluation.sasrec_settings import SASRecSettings

_TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
_BACKGROUNDS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
_MOST_TARGETS = 4096
_OF_GPT2 = {
    "norm1": "ln_1",
    "qkv": "attn.c_attn",
    "attention": "attn.c_proj",
    "norm2": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SASRecTraining:
    """Trains the network of an artifact; the scorer's options call it.

    Attributes:
        seed: of initial weights, batches and dropout.
        settings: size of the model, and how it is trained.
    """

    seed: int
    settings: SASRecSettings

    def __call__(self, catalogue: Catalogue, sequences: Sequence[NDArray[np.int32]]) -> NetworkPart:
        """Train on ``sequences``, item rows of ``catalogue``, oldest first.

        Temperature and the share of popularity are those under which the targets of the sequences that training held
        out are likeliest.

        Raises:
            InputError: fewer than two sequences of two items.
            CatalogueError: more items than can be scored for each request.
        """
        if len(catalogue) > MAX_ITEMS:
            raise CatalogueError(f"scorer sasrec: {len(catalogue):,} items; at most {MAX_ITEMS:,} can be")
        trained = SASRec.train(sequences, num_items=len(catalogue), seed=self.seed, settings=self.settings)
        counted = catalogue.frequency + 1.0
        return calibrated(exported(trained), trained.held_out, counted / counted.sum())


def exported(trained: SASRec) -> NetworkPart:
    """The tensors of a trained model under their names in an artifact; temperature 1, hardly any popularity."""
    state = {name: tensor.float().cpu().numpy() for name, tensor in trained.model.state_dict().items()}
    settings = trained.settings
    tensors = {
        "item": state["wte.weight"],
        "position": state["wpe.weight"],
        "norm_weight": state["ln_f.weight"],
        "norm_bias": state["ln_f.bias"],
    }
    for ours, theirs in _OF_GPT2.items():
        for kind in ("weight", "bias"):
            tensors[f"{ours}_{kind}"] = np.stack(
                [state[f"h.{layer}.{theirs}.{kind}"] for layer in range(settings.layers)]
            )
    network = NetworkRecord(
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        length=settings.length,
        temperature=1.0,
        background=_BACKGROUNDS[0],
    )
    return NetworkPart(network=network, tensors={name: np.ascontiguousarray(each) for name, each in tensors.items()})


def calibrated(part: NetworkPart, held_out: Sequence[Sequence[int]], popularity: NDArray[np.float64]) -> NetworkPart:
    """With the temperature and the background that make the targets of ``held_out`` likeliest.

    Args:
        part: the network.
        held_out: windows of item rows, oldest first, that it was not trained on; each item is predicted from those
            before it, 4,096 in all at most.
        popularity: ``(num_items,)``, sums to 1.
    """
    likelihood: list[NDArray[np.float64]] = []  # of each target, at each temperature
    popular: list[NDArray[np.float64]] = []
    targets = 0
    for window in held_out:
        scores, wanted = item_scores(part, window[:-1]), np.asarray(window[1:])
        at = np.arange(len(wanted))
        likelihood.append(np.exp([log_softmax(scores / each)[at, wanted] for each in _TEMPERATURES]))
        popular.append(popularity[wanted])
        targets += len(wanted)
        if targets >= _MOST_TARGETS:
            break
    network, background = np.concatenate(likelihood, axis=1), np.concatenate(popular)
    found = np.array(
        [np.log((1.0 - share) * network + share * background).mean(axis=1) for share in _BACKGROUNDS]
    )  # (backgrounds, temperatures)
    share, temperature = np.unravel_index(int(found.argmax()), found.shape)
    chosen = replace(part.network, temperature=_TEMPERATURES[temperature], background=_BACKGROUNDS[share])
    return replace(part, network=chosen)
