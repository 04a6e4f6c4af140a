"""What a checkpoint or adapter was tuned on, in a file beside its weights: prompt, catalogue, normalisation.

Asked in other words, or for titles it never saw, or scored otherwise than its loss did, a model still answers, only
worse, and nothing else would say so. Engines warn when a version whose prompts differ is loaded, answers when the model
was not tuned for their catalogue; scores follow the loss unless a request says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igd_core.errors import ModelError
from igd_core.limits import MAX_TEMPERATURE, MIN_TEMPERATURE
from igd_core.search.normalisation import NORMALISATIONS, Normalisation
from igd_core.whole_files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from igd_core.artifact import Artifact
    from igd_core.catalogue.prompts import PromptTemplate
    from igd_core.catalogue.tokenization import TitleTokenizer

PROMPT_FILE = "igd_prompt.json"
_FORMAT = "igd-prompt"
_SAMPLE = 256
# Share of the tuning's titles that a catalogue must have to count as a later version of the same catalogue.
_SAME_CATALOGUE = 0.5
_PARTS = ("prefix_ids", "bullet_ids", "suffix_ids")
_LOG = logging.getLogger(__name__)
DEFAULT_NORMALISATION = Normalisation()


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedCatalogue:
    """Identifies a catalogue by its titles, whatever its name and however often it is built again.

    Attributes:
        name: for people.
        sample: hashes of its titles, the smallest 256 of all: a sample that depends on nothing but the titles.
    """

    name: str
    sample: tuple[str, ...]

    @staticmethod
    def of(artifact: Artifact) -> TunedCatalogue:
        """The identity of an artifact's catalogue."""
        hashes = sorted(_title_hashes(artifact))
        return TunedCatalogue(name=artifact.manifest.name, sample=tuple(hashes[:_SAMPLE]))

    def share_in(self, artifact: Artifact) -> float:
        """Share of the sampled titles that ``artifact`` has too; a second at a million titles."""
        return len(_title_hashes(artifact).intersection(self.sample)) / len(self.sample)


def _title_hashes(artifact: Artifact) -> set[str]:
    return {hashlib.blake2b(title.encode(), digest_size=8).hexdigest() for title in artifact.catalogue.titles}


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedPrompt:
    """The tokens around the history in the prompts of a tuning; see `PromptTemplate`.

    The window is no part of it: a history may well be cut otherwise than in tuning. ``catalogue`` is None in files of
    releases that did not write it. ``scored`` is what the loss was normalised over; earlier releases knew but one way.
    """

    prefix_ids: tuple[int, ...]
    bullet_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    catalogue: TunedCatalogue | None = None
    scored: Normalisation = DEFAULT_NORMALISATION

    @staticmethod
    def of(
        template: PromptTemplate,
        *,
        catalogue: TunedCatalogue | None = None,
        scored: Normalisation = DEFAULT_NORMALISATION,
    ) -> TunedPrompt:
        """The tuned prompt of a template."""
        return TunedPrompt(
            prefix_ids=template.prefix_ids,
            bullet_ids=template.bullet_ids,
            suffix_ids=template.suffix_ids,
            catalogue=catalogue,
            scored=scored,
        )

    def write(self, directory: Path) -> None:
        """Write the file into ``directory``, beside the weights."""
        told: dict[str, Any] = {"format": _FORMAT, **{part: list(getattr(self, part)) for part in _PARTS}}
        if self.catalogue is not None:
            told["catalogue"] = {"name": self.catalogue.name, "sample": list(self.catalogue.sample)}
        told |= {"normalise": self.scored.normalise, "temperature": self.scored.temperature}
        write_json(directory / PROMPT_FILE, told)

    def differences(self, template: PromptTemplate, tokenizer: TitleTokenizer) -> list[str]:
        """The parts in which ``template`` differs, each with both texts."""
        other = TunedPrompt.of(template)
        return [
            f"{part.removesuffix('_ids')} {tokenizer.text(getattr(other, part))!r} "
            f"instead of {tokenizer.text(getattr(self, part))!r}"
            for part in _PARTS
            if getattr(self, part) != getattr(other, part)
        ]


def read_tuned_prompt(directory: Path) -> TunedPrompt | None:
    """Read what `TunedPrompt.write` wrote; None for a checkpoint that was not tuned here.

    Raises:
        ModelError: the file cannot be parsed.
    """
    path = directory / PROMPT_FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        told = fields.get("catalogue")
        catalogue = None
        if told is not None:
            catalogue = TunedCatalogue(name=str(told["name"]), sample=tuple(map(str, told["sample"])))
        parts = {part: tuple(int(token) for token in fields[part]) for part in _PARTS}
        prompt = TunedPrompt(**parts, catalogue=catalogue, scored=_scored(fields))
        file_format = fields["format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a tuned prompt ({type(error).__name__}: {error})") from None
    if file_format != _FORMAT:
        raise ModelError(f"{path}: not a tuned prompt (format {file_format!r})")
    return prompt


def _scored(fields: Mapping[str, Any]) -> Normalisation:
    """What the file says of its loss.

    Raises:
        ValueError: it says what there is not: another release's, which this one would score wrongly.
    """
    normalise, temperature = fields.get("normalise", "vocabulary"), float(fields.get("temperature", 1.0))
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise: {normalise!r} is not one of {', '.join(NORMALISATIONS)}")
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise ValueError(f"temperature: {temperature} is not in {MIN_TEMPERATURE}..{MAX_TEMPERATURE}")
    return Normalisation(normalise=normalise, temperature=temperature)


def read_tuned(directory: Path, adapters: Mapping[str, Path]) -> dict[str | None, TunedPrompt | None]:
    """What a checkpoint (under None) and its adapters were tuned on; None for those that were not tuned here.

    Raises:
        ModelError: as `read_tuned_prompt`.
    """
    tuned: dict[str | None, TunedPrompt | None] = {None: read_tuned_prompt(directory)}
    return tuned | {adapter: read_tuned_prompt(folder) for adapter, folder in adapters.items()}


def normalisations(tuned: Mapping[str | None, TunedPrompt | None]) -> dict[str | None, Normalisation]:
    """What a model (under None) and its adapters were tuned for, of those that say so."""
    return {name: prompt.scored for name, prompt in tuned.items() if prompt is not None}


def read_tuned_prompts(directory: Path, adapters: Mapping[str, Path]) -> dict[str, TunedPrompt]:
    """Those of a checkpoint and of its adapters, by what a warning calls them.

    Raises:
        ModelError: as `read_tuned_prompt`.
    """
    named = {str(directory): directory, **{f"adapter {name!r}": path for name, path in adapters.items()}}
    prompts = {name: read_tuned_prompt(path) for name, path in named.items()}
    return {name: prompt for name, prompt in prompts.items() if prompt is not None}


def why_untuned(tuned: TunedPrompt | None, artifact: Artifact) -> str | None:
    """Why a model does not count as tuned for ``artifact``'s catalogue; None if it does, or if it does not say.

    ``tuned`` is the file beside the weights that answer: the adapter's if one is used.
    """
    if tuned is None:
        return f"the model was not tuned for catalogue {artifact.manifest.name!r}: no {PROMPT_FILE} beside its weights"
    if tuned.catalogue is None or not tuned.catalogue.sample:
        return None
    share = tuned.catalogue.share_in(artifact)
    if share >= _SAME_CATALOGUE:
        return None
    return (
        f"the model was not tuned for catalogue {artifact.manifest.name!r}, but for {tuned.catalogue.name!r}, "
        f"of whose titles it has {share:.0%}"
    )


def warn_of_other_prompts(prompts: Mapping[str, TunedPrompt], artifact: Artifact, tokenizer: TitleTokenizer) -> None:
    """Log a warning for each that was tuned on prompts other than ``artifact``'s."""
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
