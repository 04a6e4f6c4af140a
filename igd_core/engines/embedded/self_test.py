"""Test on the checkpoint itself that a pass over a tree of tokens computes what plain passes compute.

Some architectures would answer at once, and wrongly: those that ignore positions or the mask, mix tokens by recurrence,
or look at a window. A prompt, a forced chain and two branches below it cost a handful of passes of at most twenty
tokens.

Measured by ``tests/bench/self_test_error.py`` on 134 models (22 architectures at random, 2 and 16 layers, three spreads
of weights; SmolLM2-135M, and the same tuned), run rightly and under three faults: positions by cache slot, a mask that
shows all, the cache of another prompt. The largest difference of a right one, and on how many of 134 a fault is told:

    data type   right, at most                 tolerance   slots   mask   cache   one of the three
    float32     2.7e-5 (granitemoe)            0.0001      133     134    134     134
    bfloat16    0.068 (SmolLM2-135M)           0.15        83      77     123     128
    float16     0.074 (mixtral), next 0.021    0.1         90      103    126     131

In bfloat16 SmolLM2's 30 layers differ by more than any random model: the largest of 16 layers by 0.038, of 2 by 0.015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from igd_core.engines.embedded.forward import TransformersForward
from igd_core.engines.embedded.prefix_cache import PromptKV
from igd_core.engines.embedded.token_tree import NewTokens, TokenTree
from igd_core.errors import ModelError
from igd_core.ids import ROOT, NodeId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from igd_core.engines.embedded.forward import Forward

_PROMPT, _CACHED, _CHAIN, _BRANCHES = 10, 6, 2, (5, 3)
_TOKENS = _PROMPT + _CHAIN + sum(_BRANCHES)
_TRIES = 3
# Of the spread of a row's logits. Right ones differ by the order of additions. In half precision only gross faults can
# be told; a folder is the same in all, so float32 is the one to try.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.15}
# Of a forward that rounds at other places than the modules do: `PooledLlama` keeps the residual stream in float32. By
# `self_test_error.py --own` right ones of 19 models differ by 7e-6, 0.14 and 0.011 at most (float32, bfloat16, half),
# another run of SmolLM2-135M in bfloat16 by 0.17; the three faults change SmolLM2 by 0.50, 0.75 and 1.7 in bfloat16.
_OTHERWISE_ROUNDED = _TOLERANCE | {torch.bfloat16: 0.25}
# A processor's kernels may round more than those that the tolerances were measured on: by an EPYC with AVX-512 BF16,
# SmolLM2-135M's own logits for the same tokens in one and in two parts differ by 0.18. So a difference may be twice
# that, and at most this: SmolLM2 under the three faults differs by 0.5 and more.
_ROUNDINGS = 2.0
_MOST_ROUNDED = {torch.bfloat16: 0.3, torch.float16: 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """Token ids: a prompt, a continuation of it, and two branches below that."""

    prompt: list[int]
    chain: list[int]
    branches: tuple[list[int], list[int]]

    @staticmethod
    def drawn(vocab_size: int, seed: int) -> _Probe:
        ids = np.random.default_rng(seed).integers(0, vocab_size, _TOKENS).tolist()
        prompt, rest = ids[:_PROMPT], ids[_PROMPT:]
        chain, first, second = rest[:_CHAIN], rest[_CHAIN : _CHAIN + _BRANCHES[0]], rest[_CHAIN + _BRANCHES[0] :]
        return _Probe(prompt=prompt, chain=chain, branches=(first, second))


@torch.inference_mode()
def require_trees_as_plain_passes(model: PreTrainedModel) -> None:
    """Compare tree passes, from scratch and on a cached prompt, with plain passes of the model.

    A model whose plain logits are not finite passes: the engine refuses each of its answers.

    Raises:
        ModelError: they differ, or the model cannot run this way; names the architecture.
    """
    name = f"architecture {model.config.model_type!r}"
    try:
        differences = tree_differences(model)
    except Exception as error:  # noqa: BLE001 - every architecture has its own way to fail
        said = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{name}: cannot be run over a tree of tokens as this engine does ({type(error).__name__}: {said})"
        ) from None
    for what, difference in differences.items():
        tolerance = _tolerance(model, _TOLERANCE, difference)
        if not difference <= tolerance:
            raise ModelError(
                f"{name}: {what} gives other logits than the model's own passes (by {difference:.2g} of their spread, "
                f"{tolerance:.2g} is allowed); this engine would answer wrongly with it"
            )


def why_unproved(model: PreTrainedModel, forward: Forward) -> str:
    """What keeps ``forward`` from being proved to compute what the model does; empty if nothing does.

    Nothing is proved of a model whose own logits are not finite.
    """
    try:
        differences = tree_differences(model, forward)
    except Exception as error:  # noqa: BLE001 - whatever it is, the model is run otherwise then
        return f"it failed when it was tried ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    if not differences:
        return "the model's own logits are not finite"
    what, worst = max(differences.items(), key=lambda part: part[1])
    tolerance = _tolerance(model, _OTHERWISE_ROUNDED, worst)
    if all(difference <= tolerance for difference in differences.values()):
        return ""
    return f"{what} gives other logits (by {worst:.2g} of their spread, {tolerance:.2g} is allowed)"


def _tolerance(model: PreTrainedModel, by_type: Mapping[torch.dtype, float], difference: float) -> float:
    """What is allowed; in half precision, if ``difference`` is more, as much as the model's own rounding makes of it.

    How much that is depends on the model and on the processor's kernels: see `_own_rounding`.
    """
    tolerance = by_type.get(model.dtype, by_type[torch.float32])
    if difference <= tolerance or model.dtype not in _MOST_ROUNDED:
        return tolerance
    return max(tolerance, min(_ROUNDINGS * _own_rounding(model), _MOST_ROUNDED[model.dtype]))


@torch.inference_mode()
def _own_rounding(model: PreTrainedModel) -> float:
    """How far the model's plain logits are from those that it gives for the same tokens in two parts, by its own cache.

    The largest of a few probes, in the measure of `tree_differences`; 0 for a model that cannot be run in parts.
    """
    vocab_size = int(model.config.get_text_config().vocab_size)
    found = [0.0]
    for seed in range(_TRIES):
        probe = _Probe.drawn(vocab_size, seed)
        ids = [*probe.prompt, *probe.chain, *probe.branches[0]]
        plain = _plain(model, ids)
        for cut in (_CACHED, _PROMPT):
            tokens = torch.tensor([ids], device=model.device)
            try:
                first = model(input_ids=tokens[:, :cut], use_cache=True)
                second = model(input_ids=tokens[:, cut:], past_key_values=first.past_key_values, use_cache=True)
            except Exception:  # noqa: BLE001 - every architecture has its own way to fail
                return 0.0
            parts = torch.cat([first.logits[0], second.logits[0]]).float()
            for rows in (slice(_PROMPT - 1, _PROMPT + _CHAIN), slice(_PROMPT + _CHAIN, None)):
                distance = _distance(model.dtype, parts[rows], plain[rows])
                found.append(distance if math.isfinite(distance) else 0.0)
    return max(found)


@torch.inference_mode()
def tree_differences(model: PreTrainedModel, forward: Forward | None = None) -> dict[str, float]:
    """How far the logits of trees are from plain ones, by part of the tree; empty if plain ones are not finite.

    As a share of the spread of a row's logits: of the worst row in float32, else of the median row. Trees are run by
    ``forward``, plain passes always by transformers.
    """
    run = forward or TransformersForward(model)
    vocab_size = int(model.config.get_text_config().vocab_size)
    for seed in range(_TRIES):
        probe = _Probe.drawn(vocab_size, seed)
        plain = [_plain(model, [*probe.prompt, *probe.chain, *branch]) for branch in probe.branches]
        if all(bool(torch.isfinite(logits).all()) for logits in plain):
            break
    else:
        return {}
    tree = TokenTree(run, probe.prompt)
    computed = _tree_logits(tree, probe)
    layers = tree.prompt_layers()
    cached = PromptKV(ids=np.asarray(probe.prompt), layers=layers).prefix(_CACHED)
    reused = _tree_logits(TokenTree(run, probe.prompt, cached), probe)
    start = _PROMPT - 1
    wanted = (plain[0][start : start + 1 + _CHAIN], *(logits[start + 1 + _CHAIN :] for logits in plain))
    parts = ("the prompt and its chain", "a first branch", "a second branch")
    return {
        f"{part} {where}": _distance(model.dtype, ours, theirs)
        for where, found in (("in a tree of tokens", computed), ("on a cached prompt", reused))
        for part, ours, theirs in zip(parts, found, wanted, strict=True)
    }


def _plain(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()
    return logits


def _tree_logits(tree: TokenTree, probe: _Probe) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the prompt's last token and the chain, and of both branches, whose tokens are fed alternately."""
    chain = [NodeId(number) for number in range(1, _CHAIN + 1)]
    above = tree.compute(NewTokens(nodes=chain, parents=[ROOT, *chain[:-1]], tokens=probe.chain), [True] * (_CHAIN + 1))
    # Even numbers are the first branch's nodes, odd ones the second's.
    order = sorted(
        (depth, side, token) for side, branch in enumerate(probe.branches) for depth, token in enumerate(branch)
    )
    new = NewTokens(
        nodes=[NodeId(10 + 2 * depth + side) for depth, side, _ in order],
        parents=[chain[-1] if depth == 0 else NodeId(8 + 2 * depth + side) for depth, side, _ in order],
        tokens=[token for *_, token in order],
    )
    below = tree.compute(new, [True] * len(order))
    sides = torch.tensor([side for _, side, _ in order], device=below.device)
    return above.float(), below[sides == 0].float(), below[sides == 1].float()


def _distance(dtype: torch.dtype, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest distance of a row from the plain one, in spreads of its logits.

    In half precision, of the median row: routers of experts may decide a close race otherwise.
    """
    by_row = (ours - theirs).norm(dim=1) / (theirs - theirs.mean(dim=1, keepdim=True)).norm(dim=1).clamp_min(1e-30)
    return float(by_row.max() if dtype == torch.float32 else by_row.median())
