"""Logits processors in vLLM's worker: a thin shell around the score kernel for each of vLLM's two runners.

The row of a request with a `NodeQuestion` becomes the children of its node; rows of other requests are unchanged. The
result depends on the question and the model's logits, not on tokens generated so far. So placeholders of asynchronous
scheduling, chunks of a prompt and a second start after preemption cannot change it.

V1 is the default runner. V2 (``VLLM_USE_V2_MODEL_RUNNER=1``, on CUDA) has been tested against V1 on CPU tensors only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from igd_core.engines.vllm.children import ChildChoice, ChildTable, RowMixing, expose_children_, tabulate_children
from igd_core.engines.vllm.question import EXTRA_ARG, NO_NODE, check_params
from igd_core.search.scores import RowSettings, TrieWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

    from igd_core.engines.vllm.question import NodeQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedQuestion:
    """A question, and the trie that it is about; None if that trie cannot answer it.

    Holding the trie keeps it until the request ends, even if its version is unloaded meanwhile.
    """

    question: NodeQuestion
    trie: TrieWeights | None


class TrieConstraint:
    """The tries in one worker, and how they turn a batch's logits into answers."""

    def __init__(self) -> None:
        self._tries: dict[str, TrieWeights] = {}

    @property
    def versions(self) -> tuple[str, ...]:
        """The loaded versions."""
        return tuple(self._tries)

    def load(self, version: str, trie: TrieWeights) -> None:
        """Make a version usable."""
        self._tries[version] = trie

    def unload(self, version: str) -> None:
        """Unload a version; its requests keep the trie until they end."""
        self._tries.pop(version, None)

    def accept(self, params: SamplingParams) -> AcceptedQuestion | None:
        """The question of a request, if it has one. Never raises: an error here would end the worker."""
        # Our scheduler's: made of a round that was checked at admission.
        question: NodeQuestion | None = (params.extra_args or {}).get(EXTRA_ARG)
        if question is None or question.node == NO_NODE:
            return None
        trie = self._tries.get(question.version)
        if trie is None or not _fits(question, trie):
            trie = None
        return AcceptedQuestion(question=question, trie=trie)

    def answer_(self, logits: torch.Tensor, asked: Mapping[int, AcceptedQuestion]) -> torch.Tensor:
        """Overwrite the rows with questions; returns the logits to go on with.

        Args:
            logits: ``(rows, vocab)`` float32, changed in place, or copied where it is not contiguous: vLLM pads the
                vocabulary to a multiple of 64 and cuts the padding off by a view.
            asked: question by row. If its trie is None, the row gets no children, which its reader notices.
        """
        if asked:
            logits = logits.contiguous()
        for rows in _by_trie(asked):
            trie = asked[rows[0]].trie
            questions = [asked[row].question for row in rows]
            if trie is None:
                logits[rows] = float("-inf")
                logits[rows, 0] = 0.0
            elif rows == list(range(len(logits))):
                expose_children_(logits, trie, *_choice(trie, questions))
            else:
                index = torch.tensor(rows, device=logits.device)
                part = expose_children_(logits[index], trie, *_choice(trie, questions))
                logits.index_copy_(0, index, part)
        return logits

    def table(self, logits: torch.Tensor, asked: Mapping[int, AcceptedQuestion]) -> ChildTable:
        """The children that are asked for, as a table, where every row of ``logits`` has a question.

        A row has the sampled token first, as vLLM's own have: its first column says nothing. If its trie is None, the
        row gets no children, which its reader notices.
        """
        width = 2 + max(each.question.keep for each in asked.values())
        tokens = torch.full((len(logits), width), -1, dtype=torch.int32, device=logits.device)
        logprobs = torch.full((len(logits), width), float("-inf"), device=logits.device)
        for rows in _by_trie(asked):
            trie = asked[rows[0]].trie
            if trie is None:
                continue
            index = torch.tensor(rows, device=logits.device)
            part = logits if len(rows) == len(logits) else logits[index]
            settings, choice = _choice(trie, [asked[row].question for row in rows])
            found = tabulate_children(part, trie, settings, choice, width=width - 1)
            tokens[index, 1:] = found.tokens
            logprobs[index, 1:] = found.logprobs
        return ChildTable(tokens=tokens, logprobs=logprobs)


def _by_trie(asked: Mapping[int, AcceptedQuestion]) -> list[list[int]]:
    """The rows with questions, ascending, in groups that ask about one trie."""
    groups: dict[int, list[int]] = {}
    for row in sorted(asked):
        groups.setdefault(id(asked[row].trie), []).append(row)
    return list(groups.values())


def _fits(question: NodeQuestion, trie: TrieWeights) -> bool:
    if question.node >= len(trie.row_start) - 1:
        return False
    start, end = trie.row_start[question.node : question.node + 2].tolist()
    return bool(start < end and (question.listed[-1:] < end - start).all() and len(question.prior) in (0, end - start))


def _choice(trie: TrieWeights, questions: list[NodeQuestion]) -> tuple[RowSettings, ChildChoice]:
    """What the score kernel needs of rows of one trie; row i has question i."""
    tempered = any(question.temperature != 1.0 for question in questions)
    rows = RowSettings(
        node=np.array([question.node for question in questions], dtype=np.int64),
        alpha=np.array([question.alpha for question in questions], dtype=np.float32),
        temperature=np.array([question.temperature for question in questions], dtype=np.float32) if tempered else None,
        over_children=np.array([question.over_children for question in questions], dtype=np.bool_),
    )
    choice = ChildChoice(
        keep=np.array([question.keep for question in questions], dtype=np.int64),
        only_listed=np.array([question.only_listed for question in questions], dtype=np.bool_),
        listed_row=np.repeat(np.arange(len(questions)), [len(question.listed) for question in questions]),
        listed_child=np.concatenate([question.listed for question in questions]).astype(np.int64),
        mixing=_mixing(trie, questions) if any(len(question.prior) for question in questions) else None,
    )
    return rows, choice


def _mixing(trie: TrieWeights, questions: list[NodeQuestion]) -> RowMixing:
    degrees = [int(trie.row_start[each.node + 1] - trie.row_start[each.node]) for each in questions]
    priors = [
        each.prior if len(each.prior) else np.zeros(degree, dtype=np.float32)
        for each, degree in zip(questions, degrees, strict=True)
    ]
    return RowMixing(
        linear=np.array([each.prior_linear for each in questions], dtype=np.bool_),
        model=np.array([each.prior_model for each in questions], dtype=np.float32),
        prior=np.concatenate(priors),
    )


class _RefusesBadQuestions:
    """The part of both processors that vLLM asks when a request arrives."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a bad question at admission.

        Raises:
            ValueError: names the field and the value.
        """
        check_params(sampling_params)


class TrieProcessorV1(_RefusesBadQuestions, V1LogitsProcessor):  # type: ignore[misc]  # mypy does not follow vllm
    """For the V1 runner, which reports rows added, removed and moved."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self.constraint = TrieConstraint()
        self.hooked = False
        self._asked: dict[int, AcceptedQuestion] = {}

    def is_argmax_invariant(self) -> bool:
        """False: it changes which tokens are possible."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Apply the batch's changes to the rows."""
        process_dict_updates(self._asked, batch_update, lambda params, *_: self.constraint.accept(params))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Answer the rows with questions."""
        return self.constraint.answer_(logits, self._asked)

    def answers(self, logits: torch.Tensor) -> ChildTable | None:
        """The answers of a step in which every row asks; None of any other, which goes through `apply`."""
        if len(self._asked) != len(logits):
            return None
        return self.constraint.table(logits, self._asked)


class TrieProcessorV2(_RefusesBadQuestions, V2LogitsProcessor):  # type: ignore[misc]  # mypy does not follow vllm
    """For Model Runner V2, in which a request keeps its slot while its row changes with every step."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        super().__init__(vllm_config, req_states)
        self.constraint = TrieConstraint()
        self._asked: dict[int, AcceptedQuestion] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Remember the slot's question, or forget the question of its last request."""
        accepted = self.constraint.accept(sampling_params)
        if accepted is None:
            self._asked.pop(req_idx, None)
            return False
        self._asked[req_idx] = accepted
        return True

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Answer the rows with questions."""
        slots = ctx.idx_mapping_np
        if len(slots) != len(logits):  # only speculative decoding gives a request several rows
            slots = ctx.expanded_idx_mapping.cpu().numpy()
        asked = {row: self._asked[slot] for row, slot in enumerate(slots.tolist()) if slot in self._asked}
        return self.constraint.answer_(logits, asked)
