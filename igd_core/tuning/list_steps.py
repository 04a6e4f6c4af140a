"""A step of tuning by lists: the model's own groups, their advantages, and the gradient of what follows.

    loss = -mean(advantage * ratio) + kl * mean(divergence)

over the paths of all groups (GRPO, arXiv 2402.03300, with one answer being one item). ``ratio`` is
``p(item) / p_sampled(item)`` and 1 in value, since a step's groups are of the step's own weights, so that nothing is to
be clipped; its gradient is that of ``log p(item)``, a sum over the path's decisions: `children`'s cross-entropies.

``divergence`` of a path is the sum, over the decisions on it, of ``KL(p || p_start)`` over all children there. That is
exact at each node and never negative. An estimate from the probabilities of the paths alone (k3) is one for paths drawn
from the model, and a beam's are not.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from igd_core.errors import TuningError
from igd_core.tuning.batches import by_length, collate
from igd_core.tuning.children import child_cross_entropy, child_divergence
from igd_core.tuning.examples import GroupPacks
from igd_core.tuning.groups import ListSampler
from igd_core.tuning.loss import response_logits
from igd_core.tuning.rewards import advantages, discounted_gain, rewards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from igd_core.artifact import Artifact
    from igd_core.tuning.backbone import Backbone
    from igd_core.tuning.examples import Pack
    from igd_core.tuning.settings import ListSettings

VALIDATED = 10
"""Length of validation lists, and width of the search for them: NDCG@10."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ListRows:
    """Rows as prompts and targets.

    Attributes:
        prompts: token ids of each row's prompt.
        target: ``(rows,)`` int64 leaf of each.
    """

    prompts: Sequence[Sequence[int]]
    target: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.target)

    def take(self, chosen: NDArray[np.int64]) -> ListRows:
        """The rows at these positions."""
        return ListRows(prompts=[self.prompts[row] for row in chosen.tolist()], target=self.target[chosen])


class ListTuner:
    """A model, what it began as, and its optimiser."""

    def __init__(
        self, backbone: Backbone, artifact: Artifact, settings: ListSettings, *, temperature: float, steps: int
    ) -> None:
        """``temperature``: what the model is scored with; ``steps``: of the whole run, for the schedule."""
        self._settings = settings
        self._artifact = artifact
        self._temperature = temperature
        self._steps = steps
        self._model = backbone.plain.eval()  # without dropout: the probabilities that made the lists
        self._parts = backbone.parts()
        self._start = self._start_parts() if settings.kl else None
        self._sampler = ListSampler(backbone, artifact, temperature=temperature)
        self._packs = GroupPacks(artifact)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )

    def step(self, number: int, rows: ListRows) -> dict[str, Any]:
        """Take step ``number``, counted from 1, on some rows.

        Returns:
            ``held``: share of groups with their target; ``ndcg``: the target's discounted gain in them; ``kl``: mean
            divergence of a path, nats (None if it has no weight); ``grad_norm``; ``lr``; seconds of either part.

        Raises:
            TuningError: the loss or its gradient is not finite; the weights are as before.
            EngineError: the engine failed.
        """
        began = time.perf_counter()
        groups = self._sampler.lists(rows.prompts, self._settings.group)
        sampled = time.perf_counter()
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(number)
        divergence = self._gradients(rows, groups)
        limit = self._settings.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), limit))
        if not (math.isfinite(norm) and math.isfinite(divergence)):
            raise TuningError(
                f"step {number}: the gradient's norm is {norm}, the divergence {divergence}; a lower lr may help"
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        gain = discounted_gain(groups, rows.target)
        return {
            "step": number,
            "held": float((gain > 0).mean()),
            "ndcg": float(gain.mean()),
            "kl": divergence if self._start is not None else None,
            "grad_norm": norm,
            "lr": self._learning_rate(number),
            "seconds_sampling": round(sampled - began, 3),
            "seconds_tuning": round(time.perf_counter() - sampled, 3),
        }

    def validate(self, rows: ListRows) -> dict[str, float]:
        """``eval_ndcg``: NDCG@10 of lists; ``eval_log_likelihood``: mean ``log p(target)`` over the catalogue, nats.

        Raises:
            TuningError: the log-likelihood is not finite.
        """
        found = self._sampler.lists(rows.prompts, min(VALIDATED, self._artifact.trie.num_leaves))
        packs = [
            self._packs.pack(prompt, target, np.ones(1))
            for prompt, target in zip(rows.prompts, rows.target[:, None], strict=True)
        ]
        total = 0.0
        with torch.no_grad():
            for batch in self._batches(packs):
                total += float(self._cross_entropy(response_logits(*self._parts, batch), batch).double().sum())
        if not math.isfinite(total):
            raise TuningError(f"the log-likelihood of the validation rows is {-total}; this model is not kept")
        return {
            "eval_ndcg": float(discounted_gain(found, rows.target).mean()),
            "eval_log_likelihood": -total / len(rows),
        }

    def state(self) -> dict[str, Any]:
        """What a step depends on beside its rows: tensors and plain values."""
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from another's `state`."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _gradients(self, rows: ListRows, groups: NDArray[np.int64]) -> float:
        """Add the gradient of the step's loss; returns the mean divergence of a path.

        Rows whose rewards are equal have no part in the first term, so without the second they are not computed.
        """
        advantage = advantages(rewards(groups, rows.target))
        chosen = np.flatnonzero(advantage.any(axis=1) | (self._start is not None))
        packs = [self._packs.pack(rows.prompts[row], groups[row], advantage[row]) for row in chosen.tolist()]
        divergence, paths = 0.0, groups.size
        for batch in self._batches(packs):
            logits = response_logits(*self._parts, batch)
            loss = (self._cross_entropy(logits, batch) * batch["weight"]).sum() / paths
            if self._start is not None:
                with torch.no_grad():
                    start = response_logits(*self._start, batch)
                apart = child_divergence(logits, start, batch["decisions"], temperature=self._temperature).sum() / paths
                loss = loss + self._settings.kl * apart
                divergence += float(apart.detach())
            loss.backward()
        return divergence

    def _batches(self, packs: Sequence[Pack]) -> Any:  # noqa: ANN401 - as `collate`
        for members in by_length(packs, self._settings.pack_tokens):
            batch = collate([packs[index] for index in members], self._artifact.trie)
            yield {
                name: value.to(self._model.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }

    def _cross_entropy(self, logits: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        return child_cross_entropy(logits, batch["decisions"], temperature=self._temperature)

    def _start_parts(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        start: Any = copy.deepcopy(self._model).requires_grad_(requires_grad=False)
        return start.get_decoder(), start.get_output_embeddings()

    def _learning_rate(self, number: int) -> float:
        """Of a step: rising evenly over the warm-up, then by the schedule."""
        settings = self._settings
        if number <= settings.warmup_steps:
            return settings.lr * number / settings.warmup_steps
        gone = (number - 1 - settings.warmup_steps) / max(1, self._steps - settings.warmup_steps)
        left = {"constant": 1.0, "linear": 1 - gone, "cosine": 0.5 * (1 + math.cos(math.pi * gone))}
        return settings.lr * left[settings.schedule]
