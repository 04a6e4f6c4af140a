"""The prompt that a checkpoint or adapter was tuned on, in a file beside its weights.

Asked in other words, or without the bullet it learnt, a tuned model still answers, only worse, and nothing else would
say so. Engines warn when a version whose prompts differ is loaded; it is served all the same.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igd_core.errors import ModelError
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.prompts import PromptTemplate
    from igd_core.tokenization import TitleTokenizer

PROMPT_FILE = "igd_prompt.json"
_FORMAT = "igd-prompt"
_PARTS = ("prefix_ids", "bullet_ids", "suffix_ids")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedPrompt:
    """What surrounds the history in the prompts of a tuning, as token ids; see `PromptTemplate`.

    The window is no part of it: a history may well be cut otherwise than in tuning.
    """

    prefix_ids: tuple[int, ...]
    bullet_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]

    @staticmethod
    def of(template: PromptTemplate) -> TunedPrompt:
        """That of a template."""
        return TunedPrompt(
            prefix_ids=template.prefix_ids, bullet_ids=template.bullet_ids, suffix_ids=template.suffix_ids
        )

    def write(self, directory: Path) -> None:
        """Put it beside the weights in ``directory``."""
        write_json(directory / PROMPT_FILE, {"format": _FORMAT, **{part: list(getattr(self, part)) for part in _PARTS}})

    def differences(self, template: PromptTemplate, tokenizer: TitleTokenizer) -> list[str]:
        """Each part in which ``template`` differs, with both texts."""
        other = TunedPrompt.of(template)
        return [
            f"{part.removesuffix('_ids')} {tokenizer.text(getattr(other, part))!r} "
            f"instead of {tokenizer.text(getattr(self, part))!r}"
            for part in _PARTS
            if getattr(self, part) != getattr(other, part)
        ]


def read_tuned_prompt(directory: Path) -> TunedPrompt | None:
    """What `TunedPrompt.write` left in ``directory``; None for a checkpoint of another origin.

    Raises:
        ModelError: the file is no such thing.
    """
    path = directory / PROMPT_FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        prompt = TunedPrompt(**{part: tuple(int(token) for token in fields[part]) for part in _PARTS})
        file_format = fields["format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a tuned prompt ({type(error).__name__}: {error})") from None
    if file_format != _FORMAT:
        raise ModelError(f"{path}: not a tuned prompt (format {file_format!r})")
    return prompt


def read_tuned_prompts(directory: Path, adapters: Mapping[str, Path]) -> dict[str, TunedPrompt]:
    """Those of a checkpoint and of its adapters, by what a warning calls them.

    Raises:
        ModelError: as `read_tuned_prompt`.
    """
    named = {str(directory): directory, **{f"adapter {name!r}": path for name, path in adapters.items()}}
    prompts = {name: read_tuned_prompt(path) for name, path in named.items()}
    return {name: prompt for name, prompt in prompts.items() if prompt is not None}


def warn_of_other_prompts(prompts: Mapping[str, TunedPrompt], artifact: Artifact, tokenizer: TitleTokenizer) -> None:
    """Log a warning for each that was tuned on other prompts than ``artifact``'s."""
    template = artifact.manifest.template
    for name, prompt in prompts.items():
        differences = prompt.differences(template, tokenizer)
        if differences:
            _LOG.warning(
                "%s was tuned on other prompts than those of catalogue %s, version %s: %s; expect worse answers",
                name,
                artifact.manifest.name,
                artifact.version,
                ", ".join(differences),
            )
