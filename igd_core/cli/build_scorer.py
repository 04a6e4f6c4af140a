"""How `igd build` makes an item scorer: its flags beside those of `ScorerOptions`, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from igd_core.artifact.options import BuildOptions
from igd_core.checked_settings import CheckedSettings, CountOrNone, File, comma_separated, settings_in
from igd_core.cli.flags import given_by_name
from igd_core.errors import DataError, InputError
from igd_core.scorers.gamma_file import read_gamma
from igd_core.scorers.options import (
    KINDS,
    MOST_KINDS,
    USUAL_EASE_ITEMS,
    USUAL_GAMMA,
    USUAL_MOST,
    Maker,
    ScorerOptions,
    usual_scorer,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.sources import Reading, Source
    from igd_core.scorers.record import ScorerRecord

_ALONE = {"scorer_ridge": "ease", "scorer_epochs": "sasrec", "scorer_seed": "sasrec", "scorer_file": "given"}
"""Flags of one kind."""
_OF_ANY = ("scorer_epochs", "scorer_seed", "scorer_file")
"""Flags of a kind wherever it stands; the others are of the first kind, that of --scorer."""
_OF_THE_USUAL = ("gamma", "mixture", "gamma_from")
"""Flags that the usual scorer takes, too."""
_NOT_OF_SASREC = ("scorer_decay", "scorer_backoff", "scorer_entries")


class ScorerFlags(CheckedSettings):
    """What a scorer is made with that does not become part of the artifact as it stands here."""

    usual_scorer: bool = Field(
        default=True,
        description="where --scorer names none, make the usual one of interactions that tell who chose what in which "
        f"order: the mean of transitions and, of up to {USUAL_EASE_ITEMS:,} items, ease, with gamma {USUAL_GAMMA:g}; "
        "--no-usual-scorer builds without, as the method is in its paper",
    )
    scorer_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="most epochs that sasrec trains; it ends earlier when what it held out is not predicted better for "
        "5 (default: 100)",
    )
    scorer_seed: CountOrNone | None = Field(default=None, description="of sasrec's training (default: 0)")
    scorer_file: File | None = Field(
        default=None, description="weights of your own, for given: columns item_id, next_item_id, weight"
    )
    gamma_from: File | None = Field(
        default=None,
        description="gamma, by the length of the history where that helps, and mixture: the gamma.json that `igd "
        "evaluate --gammas` chose on validation rows",
    )


def check_scorer_flags(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is read.

    Raises:
        InputError: names the flag.
    """
    of_options = {each.name for each in settings_in(BuildOptions) if each.path[0] == "scorer"}
    said = given_by_name(args, BuildOptions) | given_by_name(args, ScorerFlags)
    known = of_options.union(each.name for each in settings_in(ScorerFlags))
    names = sorted(name for name in known & set(said) - {"usual_scorer"} if said[name] is not None)
    kind, gamma_from = said.get("scorer"), said.get("gamma_from")
    if kind is not None:
        _check_kinds(kind, comma_separated(said.get("scorer_also") or ()), names)
    elif others := [name for name in names if name not in _OF_THE_USUAL or said.get("usual_scorer") is False]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        need = "needs" if len(others) == 1 else "need"
        raise InputError(
            f"scorer: {flags} {need} --scorer KIND (the usual one: --scorer transitions --scorer-also ease)"
        )
    for name in ("gamma", "mixture"):
        if gamma_from is not None and name in names:
            raise InputError(f"gamma_from: {gamma_from} says {name} too; give one of them")


def _check_kinds(kind: str, also: object, names: Collection[str]) -> None:
    """``names`` are the flags that were given; ``also`` are the further kinds."""
    kinds = [kind, *(also if isinstance(also, tuple | list) else ())]  # a file may hold anything
    for each in kinds[1:]:
        if each not in KINDS:
            raise InputError(f"scorer_also: {each!r} is not one of {', '.join(KINDS)}")
    if len(kinds) > MOST_KINDS:
        raise InputError(f"scorer_also: {len(kinds) - 1} values; {MOST_KINDS - 1} at most")
    if "scorer_share" in names and len(kinds) == 1:
        raise InputError("scorer_share: --scorer-also KIND is needed; one kind alone has no share")
    for name in names:
        if _ALONE.get(name, kind) not in (kinds if name in _OF_ANY else [kind]):
            raise InputError(f"{name}: {kind} has none; --scorer {_ALONE[name]} has")
        if kind == "sasrec" and name in _NOT_OF_SASREC:
            raise InputError(f"{name}: sasrec has none; it learns what counts")
    if kind in kinds[1:] or len(set(kinds)) < len(kinds):
        raise InputError(f"scorer_also: {', '.join(map(str, kinds))}: each kind can be there once")
    if "given" in kinds and "scorer_file" not in names:
        raise InputError("scorer_file: given needs --scorer-file FILE with the weights")


def mixing_of_the_usual(options: dict[str, Any]) -> dict[str, Any]:
    """Take gamma and mixture out of ``options`` where these name no scorer: the usual one gets them.

    Raises:
        InputError: a value that cannot be.
    """
    if "kind" in options.get("scorer", {"kind": ""}):
        return {}
    mixing: dict[str, Any] = options.pop("scorer")
    ScorerOptions.read({"kind": "transitions", **mixing})
    return mixing


def with_chosen_gamma(options: ScorerOptions | None, flags: ScorerFlags) -> ScorerOptions | None:
    """The scorer that is asked for, with gamma and mixture of ``--gamma-from``.

    Raises:
        InputError: that file cannot be used, or is of another kind of scorer.
    """
    if options is None or flags.gamma_from is None:
        return options
    chosen = read_gamma(flags.gamma_from)
    try:
        chosen.require_for("+".join(options.kinds), where=f"gamma_from: {flags.gamma_from}")
    except InputError as error:
        first, *also = chosen.scorer.split("+")
        raise InputError(f"{error} (--scorer {first}{' --scorer-also ' + ','.join(also) if also else ''})") from None
    return options.replaced(gamma=chosen.gamma, mixture=chosen.mixture)


def scorer_makers(
    options: ScorerOptions,
    flags: ScorerFlags,
    catalogue: Catalogue,
    reading: Reading,
    *,
    on_unknown: Literal["error", "drop"],
) -> dict[str, Maker]:
    """What trains or brings the kinds that are not counted from the interactions.

    Args:
        options: of the scorer.
        flags: how it is trained, or where its weights are.
        catalogue: as read, with every item.
        reading: how files are to be read.
        on_unknown: what becomes of weights between items that the catalogue lacks.

    Raises:
        DataError: what is wrong with --scorer-file.
    """
    makers: dict[str, Maker] = {}
    if flags.scorer_file is not None:
        from igd_core.datasets.item_weights_file import read_item_weights
        from igd_core.scorers.given import GivenWeights

        weights = read_item_weights(flags.scorer_file, catalogue, on_unknown=on_unknown, reading=reading)
        most = (options.most if options.kind == "given" else None) or USUAL_MOST
        makers["given"] = GivenWeights(item_ids=catalogue.item_ids, weights=weights, most=most)
    if "sasrec" in options.kinds:
        from igd_core.evaluation.sasrec_part import SASRecTraining
        from igd_core.evaluation.sasrec_settings import SASRecSettings

        epochs = {} if flags.scorer_epochs is None else {"epochs": flags.scorer_epochs}
        makers["sasrec"] = SASRecTraining(seed=flags.scorer_seed or 0, settings=SASRecSettings(**epochs))
    return makers


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenBy:
    """What each person chose, as the interactions tell it.

    Attributes:
        sequences: of each person, item rows, oldest first; none where no scorer is to be made of them.
        notes: what to say of how they were read.
        lacking: why no scorer can be made of them, where that was found.
    """

    sequences: Sequence[NDArray[np.int32]] = ()
    notes: Sequence[str] = ()
    lacking: str = ""

    @property
    def items(self) -> int:
        """Distinct ones."""
        import numpy as np

        return len(np.unique(np.concatenate(self.sequences)))


def who_chose_what(
    file: Source, catalogue: Catalogue, reading: Reading, *, on_unknown: Literal["error", "drop"]
) -> ChosenBy:
    """What a scorer is counted from or trained on.

    Raises:
        DataError: the interactions do not tell who chose what, in which order.
    """
    from igd_core.datasets.sequences import read_training, training_sequences

    read = read_training(file, catalogue, on_unknown=on_unknown, reading=reading)
    left_out = {
        "rows that do not say who chose what and when": read.bad_rows,
        "entries of histories that --items lacks": read.dropped_from_histories,
    }
    notes = [f"{file.name}: the item scorer leaves out {what}: {count:,}" for what, count in left_out.items() if count]
    return ChosenBy(sequences=training_sequences(read.data), notes=notes)


def who_chose_what_if_told(
    file: Source, catalogue: Catalogue, reading: Reading, *, on_unknown: Literal["error", "drop"]
) -> ChosenBy:
    """The same where nobody named a scorer: no sequences, and a note that says why, where no scorer can be made."""
    from igd_core.datasets.interactions_file import tells_sequences

    if not tells_sequences(file, reading):
        why = "user_id and timestamp, or history_item_ids, would say who chose what in which order"
        why += " (--columns OURS=THEIRS names them)" if reading.hints else ""
    else:
        try:
            found = who_chose_what(file, catalogue, reading, on_unknown=on_unknown)
        except DataError as error:  # it was good enough to count, and nobody asked for more
            lines = str(error).removeprefix(f"{file.name}: ").splitlines()
            why = "; ".join(" ".join(line.split()) for line in lines)
        else:
            if any(len(set(each.tolist())) > 1 for each in found.sequences):
                return found
            why = "nobody chose two items"
    return no_scorer_of(file, why)


def usual_scorer_of(
    file: Source,
    catalogue: Catalogue,
    reading: Reading,
    *,
    on_unknown: Literal["error", "drop"],
    said: Mapping[str, Any],
    flags: ScorerFlags,
) -> tuple[ChosenBy, ScorerOptions | None]:
    """The usual scorer, where the interactions tell what it is made of; ``said`` are its gamma and mixture.

    Raises:
        InputError: gamma or mixture were said of a scorer that cannot be made, or were chosen for another kind.
    """
    found = who_chose_what_if_told(file, catalogue, reading, on_unknown=on_unknown)
    if found.sequences:
        return found, with_chosen_gamma(usual_scorer(found.items).replaced(**said), flags)
    require_nothing_said(said, flags, found)
    return found, None


def require_nothing_said(said: Mapping[str, Any], flags: ScorerFlags, found: ChosenBy) -> None:
    """Refuse gamma or mixture of a usual scorer that cannot be made; ``found`` says why.

    Raises:
        InputError: names them.
    """
    if said or flags.gamma_from:
        raise InputError(f"{' and '.join(said or ['gamma_from'])}: {found.lacking}")


def no_scorer_of(file: Source, why: str) -> ChosenBy:
    """No sequences, and a note that says why."""
    note = f"{file.name}: no item scorer is made of it, and lists are the model's alone: {why}"
    return ChosenBy(notes=[note], lacking=f"no item scorer can be made of {file.name}: {why}")


def knows_nothing(scorer: ScorerRecord | None) -> bool:
    """Whether a scorer was counted in vain: it has no entry in any of its kinds."""
    return scorer is not None and not any(kind.entries for kind in scorer.kinds)
