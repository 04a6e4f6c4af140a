"""Prune a tokenizer to the tokens that a catalogue uses: the same token paths, a vocabulary a tenth the size.

For models trained from scratch, whose embeddings and output layer would otherwise be nearly all their weights and work.
Every merge that leads to a kept token is kept, so titles keep their tokens; other text falls back to shorter pieces,
down to single bytes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.catalogue.tokenization import TitleTokenizer, require_same_tokenizer
from igd_core.errors import InputError, ModelError
from igd_core.whole_files import replaced_folder

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.artifact import Artifact


def prune_tokenizer(artifact: Artifact, tokenizer_dir: Path, out: Path) -> TitleTokenizer:
    """Write a smaller byte-level BPE tokenizer to ``out`` and return it; rebuild the artifact with it.

    Raises:
        InputError: ``out`` exists.
        ArtifactError: the artifact was built with another tokenizer.
        ModelError: not a BPE tokenizer.
    """
    if out.exists():
        raise InputError(f"{out}: exists already")
    require_same_tokenizer(artifact.manifest.tokenizer_sha256, TitleTokenizer.from_directory(tokenizer_dir))
    definition = json.loads((tokenizer_dir / "tokenizer.json").read_text("utf-8"))
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text("utf-8"))
    template = artifact.manifest.template
    used = {int(token) for token in np.unique(artifact.trie.edge_token)}
    used |= {*template.prefix_ids, *template.bullet_ids, *template.suffix_ids}
    pruned = prune_definition(definition, used)
    with replaced_folder(out) as new:
        (new / "tokenizer.json").write_text(json.dumps(pruned, ensure_ascii=False), "utf-8")
        (new / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    return TitleTokenizer.from_directory(out)


def prune_definition(definition: dict[str, Any], used: set[int]) -> dict[str, Any]:
    """``tokenizer.json`` with the tokens ``used``, those they are merged from, single bytes and added tokens.

    Ids are assigned anew, in the old order.

    Raises:
        ModelError: not a BPE tokenizer, or one whose post-processor names ids.
    """
    model = definition.get("model", {})
    if model.get("type", "BPE") != "BPE" or not model.get("merges"):
        raise ModelError("only a BPE tokenizer can be cut down")
    if '"ids"' in json.dumps(definition.get("post_processor")):
        raise ModelError("the tokenizer adds control tokens to a text by id; it cannot be cut down")
    vocabulary: dict[str, int] = model["vocab"]
    added = definition.get("added_tokens") or []
    spelled = {token["content"] for token in added}
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    keep = {text for text, token in vocabulary.items() if token in used or len(text) == 1 or text in spelled}
    for left, right in reversed(pairs):  # a piece is made after its parts, so one pass finds every ancestor
        if left + right in keep:
            keep |= {left, right}
    ordered = sorted(keep, key=vocabulary.__getitem__)
    ids = {text: number for number, text in enumerate(ordered)}
    for token in added:
        ids.setdefault(token["content"], len(ids))
    return {
        **definition,
        "added_tokens": [
            {**token, "id": ids[token["content"]]} for token in sorted(added, key=lambda t: ids[t["content"]])
        ],
        "model": {
            **model,
            "vocab": {text: ids[text] for text in ordered},
            "merges": [list(pair) for pair in pairs if "".join(pair) in keep and set(pair) <= keep],
        },
    }
