"""What the self-test measures on models that are run rightly, and on the same models under faults, by data type.

    python tests/bench/self_test_error.py [--own] [--model DIR ...] [--layers 2 16] [--deviations 0.02 0.1 0.3]

Its tolerances have to lie between the two. Random models of several architectures, depths and spreads of weights;
``--model`` adds checkpoints on disk. The faults: positions by cache slot, a mask that shows all that was fed before,
and cached values that are another prompt's. ``--own``: by our forward for GPUs, of the models that it is for.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.architectures import tiny_config

from igd_core.engines.embedded.forward import LayerPairs
from igd_core.engines.embedded.key_value_pool import PooledLayers
from igd_core.engines.embedded.pooled_llama import PooledLlama, why_not_pooled
from igd_core.engines.embedded.self_test import tree_differences
from igd_core.engines.embedded.token_tree import TokenTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PretrainedConfig, PreTrainedModel

    from igd_core.engines.embedded.forward import Layers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "gptj", "falcon", "phi", "granite", "granitemoe", "mixtral", "olmo2",
    "glm4", "deepseek_v3", "qwen3_moe", "hunyuan_v1_moe", "opt", "stablelm", "nemotron", "gemma", "cohere", "bert",
)  # fmt: skip
VOCABULARY = 2000
Placed = tuple[torch.Tensor, list[int]]


def _shows_all(visible: torch.Tensor, positions: list[int]) -> Placed:
    return torch.ones_like(visible).tril_(visible.shape[1] - visible.shape[0]), positions


def _by_slot(visible: torch.Tensor, positions: list[int]) -> Placed:
    first = visible.shape[1] - visible.shape[0]
    return visible, list(range(first, first + len(positions)))


@contextlib.contextmanager
def _placed(wrong: Callable[[torch.Tensor, list[int]], Placed]) -> Iterator[None]:
    right = TokenTree._place
    TokenTree._place = lambda *args: wrong(*right(*args))  # type: ignore[method-assign]
    try:
        yield
    finally:
        TokenTree._place = right  # type: ignore[method-assign]


@contextlib.contextmanager
def _foreign_cache() -> Iterator[None]:
    right: Any = TokenTree.prompt_layers

    def wrong(tree: TokenTree) -> Layers:
        layers = right(tree)
        if isinstance(layers, PooledLayers):
            return PooledLayers(torch.stack([layers.both[:, :, 0], layers.both[:, :, 1].flip(1)], dim=2))
        return LayerPairs(tuple((keys, values.flip(2)) for keys, values in layers.pairs))

    TokenTree.prompt_layers = wrong  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        TokenTree.prompt_layers = right  # type: ignore[method-assign]


CASES: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "right": contextlib.nullcontext,
    "positions by slot": lambda: _placed(_by_slot),
    "mask shows all": lambda: _placed(_shows_all),
    "foreign cache": _foreign_cache,
}


def random_model(model_type: str, layers: int, deviation: float) -> PreTrainedModel:
    """Weights of a larger deviation give attention that looks at one place, and larger errors."""
    from transformers import AutoModelForCausalLM

    depth = dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "decoder_layers"), layers)
    config: PretrainedConfig = tiny_config(
        model_type, VOCABULARY, sliding_window=None, use_sliding_window=False, **depth
    )
    architecture = AutoModelForCausalLM._model_mapping.get(type(config), None)
    attention = "sdpa" if getattr(architecture, "_supports_sdpa", True) else "eager"
    torch.manual_seed(3)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for weight in model.parameters():
        weight.requires_grad = False
        if weight.dim() > 1:
            torch.nn.init.normal_(weight.data, std=deviation)
    return model


def measured(model: PreTrainedModel, *, own: bool) -> dict[tuple[str, str], float]:
    """The largest difference of each case in each data type; NaN where the logits are not finite.

    Trees are run by transformers' modules, or by `PooledLlama` if ``own``.
    """
    found = {}
    for name, dtype in DTYPES.items():
        model = model.to(dtype)  # type: ignore[arg-type]
        forward = PooledLlama(model) if own else None
        for case, applied in CASES.items():
            with applied():
                found[case, name] = max(tree_differences(model, forward).values(), default=math.nan)
    return found


def _models(args: argparse.Namespace) -> Iterator[tuple[str, PreTrainedModel]]:
    from igd_core.engines.embedded.checkpoint import load_checkpoint

    for layers in args.layers:
        for deviation in args.deviations:
            for model_type in ARCHITECTURES:
                yield f"{model_type}, {layers} layers, {deviation:g}", random_model(model_type, layers, deviation)
    for directory in args.model:
        yield Path(directory).name, load_checkpoint(directory, device="cpu", dtype="float32", packed=False).model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--own", action="store_true", help="by our forward for GPUs, on the CPU")
    parser.add_argument("--model", nargs="*", default=[], metavar="DIR")
    parser.add_argument("--layers", nargs="*", type=int, default=[2, 16])
    parser.add_argument("--deviations", nargs="*", type=float, default=[0.02, 0.1, 0.3])
    args = parser.parse_args()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    all_found: dict[tuple[str, str], list[float]] = {}
    write = sys.stdout.write
    columns = [(case, name) for name in DTYPES for case in CASES]
    write(f"{'':40}" + "".join(f"{name[:8] + ' ' + case[:9]:>19}" for case, name in columns) + "\n")
    for label, model in _models(args):
        if args.own and why_not_pooled(model):
            continue
        found: Any = measured(model, own=args.own)
        for key, value in found.items():
            all_found.setdefault(key, []).append(value)
        write(f"{label:40}" + "".join(f"{found[key]:19.2e}" for key in columns) + "\n")
        sys.stdout.flush()
        gc.collect()
    for (case, name), values in all_found.items():
        told = sorted(value for value in values if math.isfinite(value))
        shares = "  ".join(
            f"{share:.0%}: {told[round(share * (len(told) - 1))]:.2g}" for share in (0, 0.05, 0.5, 0.95, 1)
        )
        write(f"{name:10} {case:20} {len(told):4} models  {shares}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
