"""Over which tokens a token's probability is normalised: the whole vocabulary, or the children of its trie node.

Over the vocabulary is the method's way (arXiv 2506.13229): a title's score is what the model gives its text, forced
tokens included, and most probability goes to texts that are no title. Over the children (arXiv 2504.04178) a path's
probabilities multiply to ``p(title | history)``: they sum to 1 over the catalogue, and a forced token has
probability 1, so that nothing is asked about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Normalise = Literal["vocabulary", "children"]
NORMALISATIONS: tuple[Normalise, ...] = get_args(Normalise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """The normalisation that a model was tuned for; the default is for models that do not say.

    Attributes:
        normalise: what probabilities are normalised over.
        temperature: divides the logits, > 0.
    """

    normalise: Normalise = "vocabulary"
    temperature: float = 1.0

    def __str__(self) -> str:
        return f"{self.normalise} at temperature {self.temperature:g}"

    def settled(self, normalise: Normalise | None, temperature: float | None) -> Normalisation:
        """The normalisation to score with, from ``normalise`` and ``temperature`` of a request; None follows the model.

        A model's temperature belongs to its normalisation: for the other one it is 1 unless the request says otherwise.
        """
        chosen = self.normalise if normalise is None else normalise
        own = self.temperature if chosen == self.normalise else 1.0
        return Normalisation(normalise=chosen, temperature=own if temperature is None else temperature)
