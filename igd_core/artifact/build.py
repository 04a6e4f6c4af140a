"""Build an artifact from a catalogue and a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from igd_core.artifact.bundle import Artifact
from igd_core.artifact.counts import Counts
from igd_core.artifact.files import encode_parts
from igd_core.artifact.manifest import Manifest
from igd_core.artifact.spelling import SpelledCatalogue, spell_catalogue
from igd_core.catalogue.gain import InfoGainTable, leaf_prior_of, node_entropy
from igd_core.catalogue.items import prior
from igd_core.catalogue.prompts import PromptTemplate
from igd_core.catalogue.trie import TokenTrie
from igd_core.scorers.record import ScorerRecord, check_options, make_part
from igd_core.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from igd_core.artifact.options import BuildOptions
    from igd_core.catalogue.items import Catalogue
    from igd_core.catalogue.tokenization import TitleTokenizer
    from igd_core.scorers.options import ScorerOptions
    from igd_core.scorers.record import ScorerPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An artifact, and the ``spelled`` catalogue that it was built from."""

    artifact: Artifact
    spelled: SpelledCatalogue


def build_artifact(
    catalogue: Catalogue,
    tokenizer: TitleTokenizer,
    options: BuildOptions,
    *,
    sequences: Sequence[NDArray[np.int32]] = (),
) -> Artifact:
    """Tokenise, build the trie and the information-gain table, and name the result by its content.

    Args:
        catalogue: with the counts of the training split.
        tokenizer: spells it.
        options: of the artifact.
        sequences: of each person in the training split, item rows, oldest first: what a scorer is counted from.

    Raises:
        UnspellableError: the tokenizer cannot spell some texts.
        CatalogueError: a path that is a prefix of another, semantic IDs that are no tokens, no positive prior, or a
            scorer's setting out of range.
    """
    return build_reported(catalogue, tokenizer, options, sequences=sequences).artifact


def build_reported(
    catalogue: Catalogue,
    tokenizer: TitleTokenizer,
    options: BuildOptions,
    *,
    sequences: Sequence[NDArray[np.int32]] = (),
    stages: Stages | None = None,
) -> Built:
    """As `build_artifact`, and report the texts that the tokenizer could not spell.

    ``stages`` notes what tokens, trie, gains, a scorer and hashes took.
    """
    stages = stages or Stages()
    if options.scorer is not None:
        check_options(options.scorer)  # raises before the titles are tokenised
    prior(catalogue.frequency, options.smoothing)  # raises if nothing was ever chosen, before the titles are tokenised
    with stages.stage("tokens"):
        spelled = spell_catalogue(
            catalogue,
            tokenizer,
            max_tokens=options.max_path_tokens,
            allow_added_tokens=options.allow_added_tokens,
            on_unspellable=options.on_unspellable,
        )
    scorer = None
    if options.scorer is not None:
        with stages.stage("scorer"):
            scorer = _counted(options.scorer, spelled, sequences, before=len(catalogue))
    return Built(artifact=_assembled(spelled, tokenizer, options, scorer, stages), spelled=spelled)


def _counted(
    options: ScorerOptions, spelled: SpelledCatalogue, sequences: Sequence[NDArray[np.int32]], *, before: int
) -> ScorerPart:
    """What the scorer's file holds, of the items that were not left out of the ``before`` ones."""
    left_out = {fault.item for fault in spelled.faults if fault.item not in spelled.written}
    if left_out:
        row = np.full(before, -1, np.int32)
        kept = np.setdiff1d(np.arange(before), np.array(sorted(left_out)))
        row[kept] = np.arange(len(kept))
        sequences = [mapped[mapped >= 0] for mapped in (row[each] for each in sequences)]
    return make_part(options, spelled.catalogue, sequences)


def _assembled(
    spelled: SpelledCatalogue,
    tokenizer: TitleTokenizer,
    options: BuildOptions,
    scorer: ScorerPart | None,
    stages: Stages,
) -> Artifact:
    catalogue, paths = spelled.catalogue, spelled.paths
    with stages.stage("trie"):
        trie = TokenTrie.build(paths.offsets, paths.tokens)
    with stages.stage("gains"):
        leaf_prior = leaf_prior_of(trie, prior(catalogue.frequency, options.smoothing))
        gains = InfoGainTable.build(trie, leaf_prior)
        entropy = max(0.0, float(node_entropy(trie, leaf_prior)[0]))  # of one title it may be -0.0
    with stages.stage("hashes"):
        parts = {name: part.record() for name, part in encode_parts(catalogue, trie, gains, scorer).items()}
    manifest = Manifest(
        name=options.name,
        tokenizer_sha256=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        model_id=options.model_id,
        alpha=options.alpha,
        beams=options.beams,
        smoothing=options.smoothing,
        path_column=options.path_column,
        entropy_nats=entropy,
        template=PromptTemplate.from_text(
            tokenizer,
            instruction=options.instruction,
            bullet=options.bullet,
            suffix=options.suffix,
            max_history=options.max_history,
            drop_block=options.drop_block,
        ),
        counts=Counts(
            items=trie.num_items,
            leaves=trie.num_leaves,
            nodes=trie.num_nodes,
            edges=trie.num_edges,
            depth=trie.depth,
            cold=int((catalogue.frequency == 0).sum()),
            truncated=paths.truncated,
        ),
        parts=parts,
        scorer=None if options.scorer is None or scorer is None else ScorerRecord.of_part(options.scorer, scorer),
    )
    return Artifact.assemble(manifest, catalogue, trie, gains, scorer)
