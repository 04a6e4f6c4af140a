"""``gamma.json``: a gamma that `igd evaluate` chose on validation rows, for `igd build` to keep in an artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igd_core.errors import InputError
from igd_core.regular_files import read_regular
from igd_core.scorers.gamma import checked_gamma
from igd_core.scorers.options import MIXTURES

if TYPE_CHECKING:
    from pathlib import Path

    from igd_core.scorers.gamma import Gamma
    from igd_core.scorers.options import Mixture

GAMMA_FILE = "gamma.json"
_FORMAT = "igd-gamma"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenGamma:
    """What is chosen, and for which scorer.

    Attributes:
        gamma: a number, or one for each length of history.
        mixture: how the scorer was mixed with the model when gamma was chosen.
        scorer: its kind.
    """

    gamma: Gamma
    mixture: Mixture
    scorer: str

    def require_for(self, scorer: str, *, where: str) -> None:
        """Refuse another kind of scorer than it was chosen for; ``where`` is what the message calls this.

        Raises:
            InputError: names both kinds.
        """
        if scorer != self.scorer:
            raise InputError(f"{where}: was chosen for a scorer of {self.scorer}, and this one is of {scorer}")

    def to_json(self) -> dict[str, Any]:
        """What `read_gamma` reads; the file may hold more."""
        return {
            "format": _FORMAT,
            "format_version": 1,
            "gamma": self.gamma,
            "mixture": self.mixture,
            "scorer": self.scorer,
        }


def read_gamma(path: Path) -> ChosenGamma:
    """Read what `igd evaluate` wrote, or a person in the same form.

    Raises:
        InputError: no such file, no JSON, or a value that cannot be; names the file and the value.
    """
    try:
        content = json.loads(read_regular(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; `igd evaluate --gammas` writes it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or (content.get("format"), content.get("format_version")) != (_FORMAT, 1):
        raise InputError(f"{path}: no {_FORMAT} file of version 1")
    mixture, scorer = content.get("mixture"), content.get("scorer")
    if mixture not in MIXTURES:
        raise InputError(f"{path}: mixture is {mixture!r}; one of {', '.join(MIXTURES)}")
    if not isinstance(scorer, str):
        raise InputError(f"{path}: scorer is {scorer!r}; the kind of an item scorer is needed")
    try:
        gamma = checked_gamma(content.get("gamma"))
    except ValueError as error:
        raise InputError(f"{path}: gamma {error}") from None
    return ChosenGamma(gamma=gamma, mixture=mixture, scorer=scorer)
