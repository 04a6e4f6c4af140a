"""Every causal-LM class of the installed transformers: is a tiny random checkpoint of it served right, or refused?

    python tests/bench/architectures.py [--only llama gpt2] [--out docs/reference/architectures.md]

Each checkpoint is saved, loaded as `igd serve` loads one, and asked: ten titles of history, then others that share a
part of them, so that cached prompts are used. Every log-probability of every answer is compared with plain passes of
transformers' own model. Windows and thresholds of a configuration are made shorter than the prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import re
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from factories import EOS, make_catalogue, tokenizer_definition

from igd_core.artifact import BuildOptions, build_artifact
from igd_core.catalogue.tokenization import TitleTokenizer
from igd_core.engines.embedded.checkpoint import load_checkpoint
from igd_core.engines.embedded.engine import TreeEngine
from igd_core.errors import ModelError
from igd_core.ids import ItemIndex
from igd_core.search.query import Query
from igd_core.search.recommender import Recommender

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from transformers import PretrainedConfig

    from igd_core.artifact import Artifact
    from igd_core.search.recommender import Recommendation

Verdict = Literal["right", "refused", "WRONG", "no tiny checkpoint"]
TOLERANCE_NATS = 1e-3
MOST_PARAMETERS = 80_000_000
SECONDS_EACH = 240
HISTORIES = ([1, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 20, 21], [1, 2])
_WINDOW = 8
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "ffn_dim": 48,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "n_layers": 2,
    "n_heads": 4,
    "max_seq_len": 256,
    "max_position_embeddings": 256,
    "embedding_size": 32,
    "embed_dim": 32,
    "head_dim": 8,
    "initializer_range": 0.2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "rotary_dim": 4,
    "original_max_position_embeddings": 24,
    "sliding_window": _WINDOW,
    "window_size": _WINDOW,
    "attention_window": _WINDOW,
    "attention_window_size": _WINDOW,
    "attention_chunk_size": _WINDOW,
    "use_mamba_kernels": False,
    "word_embed_proj_dim": 32,
    "ffn_hidden_size": 48,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "is_decoder": True,
}
# What a class needs beside the sizes above, or instead of them.
_OTHERWISE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_heads": 4},
    **{
        name: {"num_key_value_heads": 4}
        for name in ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu")
    },
    "zaya": {"num_experts_per_tok": 1},
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 200,
        },
        "original_max_position_embeddings": 200,
        "sliding_window": None,
    },
}
_PLAIN_WINDOWS = ("sliding_window",)
_ALSO_WITHOUT = "without a window"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; ``difference`` in nats, where there was an answer."""

    model_type: str
    class_name: str
    verdict: Verdict
    said: str = ""
    difference: float | None = None


def tiny_config(model_type: str, vocab_size: int, **changes: Any) -> PretrainedConfig:
    """The default configuration of a type, with every size it has made small."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    made: PretrainedConfig = config_class(**_fields(config_class, vocab_size, model_type, changes))
    return made


def _fields(cls: Any, vocab_size: int, model_type: str, changes: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    sizes = _SIZES | {"vocab_size": vocab_size} | _OTHERWISE.get(model_type, {}) | changes
    chosen = {name: value for name, value in sizes.items() if name in names}
    chosen |= {name: 0 for name in names if name.endswith("_token_id") and name != "eos_token_id"}
    parts = getattr(cls, "sub_configs", None) or {}
    for part, part_class in parts.items():
        if part in names and dataclasses.is_dataclass(part_class):
            chosen[part] = _fields(part_class, vocab_size, model_type, changes)
    return chosen


class TooSlowError(Exception):
    """A class took longer than it may."""


def _too_slow(_: int, __: FrameType | None) -> None:
    raise TooSlowError(f"took more than {SECONDS_EACH} s")


def examine(model_type: str, tokenizer: TitleTokenizer, artifact: Artifact, definition: dict[str, Any]) -> Row:
    """One class, without its window where it can be without."""
    row = _examine(model_type, tokenizer, artifact, definition, windowed=False)
    if row.verdict in ("refused", "no tiny checkpoint") and "sliding_" in row.said:
        return _examine(model_type, tokenizer, artifact, definition, windowed=True)
    return row


def _examine(
    model_type: str, tokenizer: TitleTokenizer, artifact: Artifact, definition: dict[str, Any], *, windowed: bool
) -> Row:
    """Make, save, load and ask."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    class_name = names if isinstance(names, str) else names[0]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / model_type
        try:
            said = _save_tiny(model_type, directory, tokenizer, definition, windowed=windowed)
        except Exception as error:  # noqa: BLE001 - whatever keeps a class from being made small
            return Row(model_type=model_type, class_name=class_name, verdict="no tiny checkpoint", said=_line(error))
        try:
            checkpoint = load_checkpoint(directory, device="cpu", dtype="float32")
        except ModelError as error:
            told = str(error).replace(f"{directory}: ", "")
            return Row(model_type=model_type, class_name=class_name, verdict="refused", said=told)
        try:
            difference = _difference(directory, TreeEngine(checkpoint), artifact)
        except Exception as error:  # noqa: BLE001 - an answer that fails is no wrong answer; it still has to be seen
            return Row(model_type=model_type, class_name=class_name, verdict="WRONG", said=f"failed: {_line(error)}")
        verdict: Verdict = "right" if difference <= TOLERANCE_NATS else "WRONG"
        return Row(model_type=model_type, class_name=class_name, verdict=verdict, said=said, difference=difference)


def _save_tiny(
    model_type: str, directory: Path, tokenizer: TitleTokenizer, definition: dict[str, Any], *, windowed: bool
) -> str:
    from transformers import AutoModelForCausalLM

    said = ""
    config = tiny_config(model_type, tokenizer.vocab_size + 5)
    text = config.get_text_config()
    if (
        not windowed and getattr(text, "sliding_window", None) is not None
    ):  # refused as it is: what does the architecture without one?
        try:
            config = tiny_config(
                model_type, tokenizer.vocab_size + 5, sliding_window=None, use_sliding_window=False, **_all_full(text)
            )
            said = _ALSO_WITHOUT
        except Exception:  # noqa: BLE001 - it cannot be without
            said = ""
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} million parameters at the least")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():  # attention that looks somewhere, so that a wrong mask or position shows
        if weight.dim() > 1:
            torch.nn.init.normal_(weight.data, std=0.3)
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), encoding="utf-8")
    return said


def _all_full(text: Any) -> dict[str, Any]:
    types = getattr(text, "layer_types", None)
    return {} if types is None else {"layer_types": ["full_attention"] * len(types)}


@torch.inference_mode()
def _difference(directory: Path, engine: TreeEngine, artifact: Artifact) -> float:
    """The largest difference of any answer's log-probabilities from plain passes, in nats."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    worst = 0.0
    for answer in asyncio.run(_answers(engine, artifact)):
        assert answer.source == "model", "popularity answered"
        for item in answer.items:
            path = [token.token_id for token in item.tokens]
            ids = torch.tensor([[*answer.prompt_ids, *path[:-1]]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(answer.prompt_ids) - 1 :].float()
            plain = torch.log_softmax(logits, dim=-1)[range(len(path)), path]
            ours = torch.tensor([token.logprob for token in item.tokens])
            worst = max(worst, float((plain - ours).abs().max()))
    return worst


async def _answers(engine: TreeEngine, artifact: Artifact) -> list[Recommendation]:
    try:
        await engine.load(artifact)
        recommender = Recommender(artifact, engine)
        return [
            await recommender.recommend(Query(history=[ItemIndex(row) for row in history], k=5, beams=5))
            for history in HISTORIES
        ]
    finally:
        await engine.close()


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:160]}" if lines else type(error).__name__


def _kept(path: Path | None) -> list[Row]:
    if path is None or not path.is_file():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(only: Sequence[str], done: set[str]) -> Iterator[Row]:
    """All classes, or those asked for, without those that are done."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    definition = tokenizer_definition()
    tokenizer = TitleTokenizer(definition, EOS)
    artifact = build_artifact(make_catalogue(60), tokenizer, BuildOptions(name="films"))
    signal.signal(signal.SIGALRM, _too_slow)
    for model_type in only or sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - done):
        signal.alarm(SECONDS_EACH)
        try:
            yield examine(model_type, tokenizer, artifact, definition)
        except TooSlowError as error:
            yield Row(model_type=model_type, class_name="", verdict="no tiny checkpoint", said=str(error))
        finally:
            signal.alarm(0)
            gc.collect()


_ORDER = ("WRONG", "right", "refused", "no tiny checkpoint")


def document(found: Sequence[Row], how: str) -> str:
    """The tables, as Markdown; ``how`` says in how many runs it was made, and how long that took."""
    import transformers

    counts = {verdict: sum(row.verdict == verdict for row in found) for verdict in ("right", "refused", "WRONG")}
    head = f"""# Model architectures that the embedded engine serves

Which checkpoints the engine `tree` serves is decided on the checkpoint, when it is loaded: a pass over a tree of tokens
must say what the model's own passes say, or the checkpoint is refused by one line. These tables show what comes of that
for every causal-LM class of transformers of which a tiny random checkpoint can be made. Each answer of a class that is
served was compared with plain passes of transformers, token by token; it agrees within {TOLERANCE_NATS:g} nats. Made by

    python tests/bench/architectures.py --out docs/reference/architectures.md

{how}, with transformers {transformers.__version__} and torch {torch.__version__}: {counts["right"]} right, \
{counts["refused"]} refused, {counts["WRONG"]} wrong; of {len(found) - sum(counts.values())} none was made.

In half precision the check tells gross faults alone (`igd_core/engines/embedded/self_test.py` has figures, which
`tests/bench/self_test_error.py` makes): try a new architecture in float32.

`model_type` is that of `config.json`.

"""
    return head + "\n".join(_grouped(found))


def _grouped(found: Sequence[Row]) -> Iterator[str]:
    """A table for each verdict: types that fare alike share a row."""
    for verdict in dict.fromkeys(row.verdict for row in sorted(found, key=lambda row: _ORDER.index(row.verdict))):
        groups: dict[str, list[Row]] = {}
        for row in found:
            if row.verdict == verdict:
                groups.setdefault(_reason(row), []).append(row)
        of_it = sum(map(len, groups.values()))
        yield f"## {verdict.capitalize()}: {of_it}\n\n| why or how | `model_type` |\n| --- | --- |"
        for reason, rows_of_it in sorted(groups.items(), key=lambda group: -len(group[1])):
            types = ", ".join(f"`{row.model_type}`" for row in rows_of_it)
            apart = [row.difference for row in rows_of_it if row.difference is not None]
            told = f"{reason}; at most {max(apart):.1e} nats apart" if apart else reason
            yield f"| {told.replace('|', '/')} | {types} |"
        yield ""


def _reason(row: Row) -> str:
    """What is said, without what is of this type alone."""
    said = re.sub(r"^architecture '[^']*': | \(\w+Error.*| \([^)]*\)| <class.*|; this engine would.*", "", row.said)
    said = re.sub(r"^\w+Error: .*", "", said)
    if row.verdict == "right":
        return f"compared token by token{', ' if said else ''}{said}"
    return said or "transformers makes no small one of its configuration"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="TYPE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=Path, metavar="FILE", help="keep rows here, and go on with those it has")
    args = parser.parse_args()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = _kept(args.rows)
    how, started = "in several runs, the last" if found else "in one run", time.monotonic()
    for row in rows(args.only, done={row.model_type for row in found}):
        found.append(row)
        if args.rows is not None:
            with args.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
        told = row.said if row.difference is None else f"{row.difference:.1e} {row.said}"
        sys.stdout.write(f"{row.model_type:24} {row.verdict:18} {told[:220]}\n")
        sys.stdout.flush()
    if args.out is not None:
        how += f" of {time.monotonic() - started:.0f} s on one thread"
        args.out.write_text(document(sorted(found, key=lambda row: row.model_type), how), encoding="utf-8")
    return int(any(row.verdict == "WRONG" for row in found))


if __name__ == "__main__":
    raise SystemExit(main())
