"""Checks that an artifact and a prompt fit a model: its tokenizer, its vocabulary, its context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igd_core.catalogue.tokenization import require_same_tokenizer
from igd_core.errors import ArtifactError, EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from igd_core.artifact import Artifact
    from igd_core.catalogue.tokenization import TitleTokenizer


def require_artifact_fits(artifact: Artifact, tokenizer: TitleTokenizer, vocab_size: int) -> None:
    """Refuse an artifact of another tokenizer, with another EOS, or with token ids that the model does not have.

    Raises:
        ArtifactError: names what differs.
    """
    manifest = artifact.manifest
    require_same_tokenizer(manifest.tokenizer_sha256, tokenizer)
    if manifest.eos_id != tokenizer.eos_id:
        raise ArtifactError(f"eos: paths end with token {manifest.eos_id}, the model's is {tokenizer.eos_id}")
    if manifest.vocab_size > vocab_size:
        raise ArtifactError(f"vocabulary: the artifact needs {manifest.vocab_size}, the model has {vocab_size}")


def require_prompt_fits(prompt_ids: Sequence[int], artifact: Artifact, *, context_tokens: int, vocab_size: int) -> None:
    """Refuse a prompt that is empty, leaves no room for the longest path, or has token ids that the model lacks.

    Asking for the embedding of such a token makes an accelerator unusable for the process, and fails everyone's
    requests.
    requests.

    Raises:
        EngineError: names the length or the token.
    """
    longest = context_tokens - artifact.trie.depth
    if not 1 <= len(prompt_ids) <= longest:
        raise EngineError(f"the prompt has {len(prompt_ids)} tokens; 1 to {longest} fit")
    for token in (min(prompt_ids), max(prompt_ids)):
        if not 0 <= token < vocab_size:
            raise EngineError(f"the prompt holds token {token}; the model has 0 to {vocab_size - 1}")
