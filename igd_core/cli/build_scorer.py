"""The flags of `igd build` that make an item scorer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from igd_core.cli.numbers import Real, Whole, gamma
from igd_core.datasets.item_weights_file import read_item_weights
from igd_core.errors import InputError
from igd_core.scorers.gamma_file import read_gamma
from igd_core.scorers.given import GivenWeights
from igd_core.scorers.record import (
    KINDS,
    MAX_BACKOFF,
    MAX_RIDGE,
    MIN_BACKOFF,
    MIN_RIDGE,
    MIXTURES,
    USUAL_RIDGE,
    ScorerOptions,
)
from igd_core.scorers.rows import MAX_ENTRIES

if TYPE_CHECKING:
    import argparse

    from igd_core.catalogue.items import Catalogue
    from igd_core.datasets.sources import Reading
    from igd_core.scorers.record import Maker

_FLAGS = {
    "decay": "scorer_decay",
    "backoff": "scorer_backoff",
    "most": "scorer_entries",
    "ridge": "scorer_ridge",
    "gamma": "gamma",
    "mixture": "mixture",
}
_ALONE = {"scorer_ridge": "ease", "scorer_epochs": "sasrec", "scorer_seed": "sasrec", "scorer_file": "given"}
"""Flags of one kind."""
_NOT_OF_SASREC = ("scorer_decay", "scorer_backoff", "scorer_entries")
_USUAL_MOST = 200


def add_scorer_arguments(parser: argparse.ArgumentParser) -> None:
    """Register them."""
    parser.add_argument(
        "--scorer",
        choices=KINDS,
        help="make an item scorer of the interactions as well: what followed what, what the same people chose, EASE "
        "(what best predicts one choice from the others), a SASRec that is trained here, or the weights of "
        "--scorer-file",
    )
    parser.add_argument(
        "--scorer-decay",
        type=Real("scorer_decay", most=1.0),
        metavar="D",
        help="what an earlier item of a history counts of the one after it (default: 0.25 of transitions, 0.7 of ease, "
        "1 of neighbours and given)",
    )
    parser.add_argument(
        "--scorer-backoff",
        type=Real("scorer_backoff", least=MIN_BACKOFF, most=MAX_BACKOFF),
        metavar="B",
        help="what popularity counts as beside transitions, similarities or weights (default: 1)",
    )
    parser.add_argument(
        "--scorer-entries",
        type=Whole("scorer_entries", least=1, most=MAX_ENTRIES),
        metavar="N",
        help=f"most followers, neighbours or weights kept of an item (default: {_USUAL_MOST})",
    )
    parser.add_argument(
        "--scorer-ridge",
        type=Real("scorer_ridge", least=MIN_RIDGE, most=MAX_RIDGE),
        metavar="L",
        help=f"how strongly the weights of ease are drawn to 0 (default: {USUAL_RIDGE:g})",
    )
    parser.add_argument(
        "--scorer-epochs",
        type=Whole("scorer_epochs", least=1, most=10_000),
        metavar="N",
        help="most epochs that sasrec trains; it ends earlier when what it held out is not predicted better for 5 "
        "(default: 100)",
    )
    parser.add_argument(
        "--scorer-seed", type=Whole("scorer_seed", least=0), metavar="N", help="of sasrec's training (default: 0)"
    )
    parser.add_argument(
        "--scorer-file",
        type=Path,
        metavar="FILE",
        help="weights of your own, for given: columns item_id, next_item_id, weight",
    )
    parser.add_argument(
        "--gamma", type=gamma(), help="weight of the scorer in a search, of requests that name none (default: 0)"
    )
    parser.add_argument(
        "--gamma-from",
        type=Path,
        metavar="FILE",
        help="gamma, by the length of the history where that helps, and mixture: the gamma.json that `igd evaluate "
        "--gammas` chose on validation rows",
    )
    parser.add_argument(
        "--mixture",
        choices=MIXTURES,
        help="how it is mixed with the model, of requests that name none (default: log-linear)",
    )


def check_scorer_arguments(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is read.

    Raises:
        InputError: names the flag.
    """
    given = {name for name in {*_FLAGS.values(), *_ALONE, "gamma_from"} if getattr(args, name) is not None}
    if args.scorer is None:
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
            raise InputError(f"scorer: {flags} need --scorer KIND")
        return
    for name in sorted(given):
        if _ALONE.get(name, args.scorer) != args.scorer:
            raise InputError(f"{name}: {args.scorer} has none; --scorer {_ALONE[name]} has")
        if args.scorer == "sasrec" and name in _NOT_OF_SASREC:
            raise InputError(f"{name}: sasrec has none; it learns what counts")
    if args.scorer == "given" and args.scorer_file is None:
        raise InputError("scorer_file: --scorer given needs --scorer-file FILE with the weights")
    if args.gamma_from is not None:
        for name in ("gamma", "mixture"):
            if name in given:
                raise InputError(f"gamma_from: {args.gamma_from} says {name} too; give one of them")
        read_gamma(args.gamma_from).require_for(args.scorer, where=f"gamma_from: {args.gamma_from}")


def scorer_options(args: argparse.Namespace, catalogue: Catalogue, reading: Reading) -> ScorerOptions | None:
    """What is to be made; None where nothing is.

    Args:
        args: that `check_scorer_arguments` took.
        catalogue: as read, with every item.
        reading: how files are to be read.

    Raises:
        DataError: what is wrong with --scorer-file.
    """
    if args.scorer is None:
        return None
    options = {option: getattr(args, flag) for option, flag in _FLAGS.items() if getattr(args, flag) is not None}
    if args.gamma_from is not None:
        chosen = read_gamma(args.gamma_from)
        options |= {"gamma": chosen.gamma, "mixture": chosen.mixture}
    return ScorerOptions(kind=args.scorer, maker=_maker(args, catalogue, reading), **options)


def _maker(args: argparse.Namespace, catalogue: Catalogue, reading: Reading) -> Maker | None:
    if args.scorer == "given":
        weights = read_item_weights(args.scorer_file, catalogue, on_unknown=args.on_unknown_item, reading=reading)
        most = _USUAL_MOST if args.scorer_entries is None else args.scorer_entries
        return GivenWeights(item_ids=catalogue.item_ids, weights=weights, most=most)
    if args.scorer == "sasrec":
        from igd_core.evaluation.sasrec import SASRecSettings
        from igd_core.evaluation.sasrec_part import SASRecTraining

        settings = SASRecSettings() if args.scorer_epochs is None else SASRecSettings(epochs=args.scorer_epochs)
        return SASRecTraining(seed=args.scorer_seed or 0, settings=settings)
    return None
