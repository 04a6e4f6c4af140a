"""In which precision a model's linear layers multiply on the CPU: fp32, or bf16 after a test on the model itself.

In bf16, weights of the decoder's layers and what they are multiplied with are rounded to 8 bits; the residual stream,
norms, rotations, attention, the output layer and the softmax over it stay in fp32. The output layer does because
rounded logits of 20 are off by up to 0.06, which decides as many close races as all layers before it: with it in bf16
too, a prototype found fewer of fp32's ten recommendations, and was a tenth faster at most.

fp32 is what results are compared with. bf16 is refused where the next tokens that it finds are not fp32's.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from igd_core.engines.embedded.packed_linear import hidden_linears
from igd_core.engines.embedded.token_tree import NewTokens, TokenTree
from igd_core.errors import ModelError
from igd_core.ids import ROOT, NodeId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel

    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.engines.embedded.forward import Forward
    from igd_core.engines.embedded.packed_linear import PackedLinear
    from igd_core.engines.forward_choice import PrecisionChoice

_FILMS = (
    "A person watched these films, oldest first: Toy Story (1995), Twelve Monkeys (1995), Star Wars (1977), Fargo "
    "(1996), The Godfather (1972), Pulp Fiction (1994). Next they watched:"
)
_TEXTS = (
    _FILMS,
    "The history of the city begins in the ninth century, when a small group of people settled by the river.",
)
_RANDOM_TOKENS, _FIRST, _TOP = 40, 4, 10
# SmolLM2-135M: above 98 %, and about 0.2 nats. Weights that bf16 cannot hold lose most of the list.
_LEAST_OVERLAP, _MOST_NATS = 0.9, 0.5
_TIMED_PROMPT, _TIMED_TOKENS, _REPEATS = 32, 20, 5
_WARM = 6  # passes in which the own forward tries its ways (`fastest_way`)
_LEAST_SPEEDUP = 1.1
_NOT_FINITE = "the model's scores are not finite"
_NATIVE = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionTest:
    """bf16 beside fp32 on one model, right now.

    Attributes:
        rows: tokens after which the next was asked for.
        overlap: mean share of fp32's ten most likely next tokens that are among bf16's.
        nats: largest difference of a log-probability of those ten.
        speedup: of a pass of 20 tokens, by fp32's time; median of interleaved passes.
    """

    rows: int
    overlap: float
    nats: float
    speedup: float

    def __str__(self) -> str:
        return (
            f"{self.overlap:.1%} of fp32's ten next tokens, {self.nats:.2g} nats off at most, over {self.rows} rows; "
            f"{self.speedup:.2g} times as fast"
        )

    @property
    def why_not(self) -> str:
        """What is wrong with bf16's results; empty if nothing is."""
        if not math.isfinite(self.nats):
            return _NOT_FINITE
        if not self.overlap >= _LEAST_OVERLAP:
            return f"finds {self.overlap:.1%} of fp32's ten next tokens, {_LEAST_OVERLAP:.0%} are needed"
        if not self.nats <= _MOST_NATS:
            return f"is {self.nats:.2g} nats off fp32, {_MOST_NATS:g} are allowed"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What was chosen.

    Attributes:
        name: ``fp32`` or ``bf16``; empty where weights are no float32 on the CPU, whose type then says it all.
        why: why it is not bf16, where that was asked for or left to this machine.
        test: the worst of the model and its adapters; None where there was none.
    """

    name: Literal["", "fp32", "bf16"] = "fp32"
    why: str = ""
    test: PrecisionTest | None = None

    @property
    def told(self) -> str:
        """For people: what `PrecisionTest` found, or why it is not bf16; empty if fp32 was asked for."""
        return self.why or ("" if self.test is None else str(self.test))


def settle_precision(
    choice: PrecisionChoice,
    ways: Mapping[str | None, tuple[PreTrainedModel, Forward]],
    tokenizer: TitleTokenizer,
) -> Precision:
    """Test bf16 on each model if it is asked for, let all multiply in what is chosen, and drop the other weights.

    Args:
        choice: ``bf16`` is taken or refused. ``auto`` is bf16 where the processor has instructions for it, where it is
            faster right now, and where it finds what fp32 does; else fp32.
        ways: models and how they are run, by adapter. All get the same precision.
        tokenizer: of all.

    Raises:
        ModelError: ``bf16`` where it cannot be, or where it finds other next tokens.
    """
    models = [model for model, _ in ways.values()]
    linears = [each for model in models for each in hidden_linears(model)]
    fp32_on_cpu = all(model.dtype == torch.float32 and model.device.type == "cpu" for model in models)
    if choice == "fp32":
        return Precision(name="fp32" if fp32_on_cpu else "")
    why, worst = "", None
    if not fp32_on_cpu:
        dtype = str(models[0].dtype).removeprefix("torch.")
        why = f"it is for float32 weights on the CPU, and these are {dtype} on {models[0].device.type}"
    elif not linears:
        why = "no linear layer is laid out for oneDNN"
    elif choice == "auto" and not any(_capabilities().get(each) for each in _NATIVE):
        why = "this processor has no instructions for it"
    else:
        why, worst = _tested(ways, tokenizer)
        if not why and choice == "auto" and worst is not None and worst.speedup < _LEAST_SPEEDUP:
            why = f"a pass is {worst.speedup:.2g} times as fast, {_LEAST_SPEEDUP:g} are needed"
    for each in linears:
        each.multiply_in(torch.float32 if why else torch.bfloat16)
        each.keep_one_layout()
    if why and choice == "bf16":
        raise ModelError(f"precision 'bf16': {why}" + ("" if _NOT_FINITE in why else "; 'fp32' can be used"))
    if why:
        return Precision(name="fp32" if fp32_on_cpu else "", why=f"bf16: {why}", test=worst)
    return Precision(name="bf16", test=worst)


def _tested(
    ways: Mapping[str | None, tuple[PreTrainedModel, Forward]], tokenizer: TitleTokenizer
) -> tuple[str, PrecisionTest | None]:
    """Why not bf16, and the worst test; both layouts are kept."""
    worst = None
    for adapter, (model, forward) in ways.items():
        try:
            found = tested(model, forward, tokenizer)
        except RuntimeError as error:  # oneDNN has no such product for this processor
            return f"this processor cannot ({str(error).splitlines()[0]})", None
        if found.why_not:
            return found.why_not + ("" if adapter is None else f", with adapter {adapter!r}"), found
        if worst is None or found.overlap < worst.overlap:
            worst = found
    return "", worst


@torch.inference_mode()
def tested(model: PreTrainedModel, forward: Forward, tokenizer: TitleTokenizer) -> PrecisionTest:
    """Run both precisions on the same tokens; leaves the model in bf16, with both layouts.

    Raises:
        RuntimeError: this processor or this torch has no bf16 product.
    """
    linears, probes = hidden_linears(model), _probes(model, tokenizer)
    by_dtype, seconds = {}, []
    for dtype in (torch.float32, torch.bfloat16):
        _multiply_in(linears, dtype)
        by_dtype[dtype] = torch.cat([_next_logprobs(forward, ids) for ids in probes])
    for _ in range(_WARM + _REPEATS):
        for dtype in (torch.float32, torch.bfloat16):
            _multiply_in(linears, dtype)
            seconds.append(_pass_s(forward, min(_TIMED_PROMPT, _context(model) - 1)))
    ratios = [full / half for full, half in zip(seconds[2 * _WARM :: 2], seconds[2 * _WARM + 1 :: 2], strict=True)]
    full, half = by_dtype[torch.float32], by_dtype[torch.bfloat16]
    top, found = full.topk(_TOP).indices, half.topk(_TOP).indices
    shared = (top[:, :, None] == found[:, None, :]).any(dim=2).float().mean()
    return PrecisionTest(
        rows=len(full),
        overlap=float(shared),
        nats=float((full.gather(1, top) - half.gather(1, top)).abs().amax()),
        speedup=statistics.median(ratios),
    )


def _multiply_in(linears: Sequence[PackedLinear], dtype: torch.dtype) -> None:
    for each in linears:
        each.multiply_in(dtype)


def _probes(model: PreTrainedModel, tokenizer: TitleTokenizer) -> list[list[int]]:
    """Token ids of texts, and random ones; the model has all of them."""
    vocab_size = int(model.config.get_text_config().vocab_size)
    most = min(_RANDOM_TOKENS, _context(model))
    texts = [ids[:most] for text in _TEXTS if max(ids := tokenizer.encode_plain(text), default=vocab_size) < vocab_size]
    drawn = [np.random.default_rng(seed).integers(0, vocab_size, most).tolist() for seed in range(2)]
    return [*texts, *drawn]


def _context(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().max_position_embeddings)


def _next_logprobs(forward: Forward, ids: list[int]) -> torch.Tensor:
    """``(rows, vocabulary)`` log-probabilities of what follows each token but the first few."""
    chain = [NodeId(number) for number in range(1, len(ids))]
    tree = TokenTree(forward, ids[:1])
    logits = tree.compute(NewTokens(nodes=chain, parents=[ROOT, *chain[:-1]], tokens=ids[1:]), [True] * len(ids))
    first = min(_FIRST, len(ids) - 1)
    return torch.log_softmax(logits[first:].float(), dim=-1)


def _pass_s(forward: Forward, prompt_tokens: int) -> float:
    """Seconds of a pass of one round below a prompt."""
    tree = TokenTree(forward, [0] * prompt_tokens)
    tree.compute(NewTokens(nodes=[], parents=[], tokens=[]), [True])
    nodes = [NodeId(number) for number in range(1, _TIMED_TOKENS + 1)]
    new = NewTokens(nodes=nodes, parents=[ROOT] * len(nodes), tokens=[0] * len(nodes))
    started = time.perf_counter()
    tree.compute(new, [True] * len(nodes))
    return time.perf_counter() - started


def _capabilities() -> Mapping[str, object]:
    """What the processor has, as torch tells it."""
    return torch.cpu.get_capabilities()
