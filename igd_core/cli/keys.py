"""`igd keys`: who may use a server, and for what."""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from igd_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from igd_server.http.keys import Scope, StoredKey

_DAYS = re.compile(r"[1-9]\d{0,4}d")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `igd keys create`, `list` and `revoke`."""
    parser = subparsers.add_parser(
        "keys",
        help="make, list and revoke API keys",
        description="Servers started with --keys-file read the file again when it changes, a second later at most.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = _add_action(actions, "create", "make a key and print it, once: the file holds only a hash of it", _create)
    create.add_argument("--name", required=True, help="who will use it, for people")
    create.add_argument(
        "--scopes",
        required=True,
        metavar="SCOPE,...",
        help="recommend: recommendations, items and catalogues; events: events and users; admin: roll back and reload; "
        "metrics: /metrics",
    )
    create.add_argument("--expires", metavar="WHEN", help="90d, or a time as 2027-01-31T00:00:00Z; never by default")
    _add_action(actions, "list", "show the keys, without their secrets", _list)
    revoke = _add_action(actions, "revoke", "remove a key", _revoke)
    revoke.add_argument("id", help="as `igd keys list` shows it: the 12 digits after igd_")


def _add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, run: object
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=about)
    parser.add_argument("--keys-file", type=Path, required=True, metavar="FILE", help="as `igd serve` has it")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)
    return parser


def _create(args: argparse.Namespace) -> int:
    from igd_server.http.keys import keys_to_change, make_key, write_keys

    new = make_key(args.name, _scopes(args.scopes), None if args.expires is None else _expiry(args.expires))
    with keys_to_change(args.keys_file) as keys:
        write_keys(args.keys_file, keys.with_key(new.stored))
    if args.json:
        print(json.dumps({"key": new.token, **_facts(new.stored)}))
    else:
        print(new.token)
        print(f"igd: key {new.stored.id} is in {args.keys_file}; it is shown this once", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace) -> int:
    from igd_server.http.keys import read_keys

    keys = read_keys(args.keys_file).keys
    if args.json:
        print(json.dumps([_facts(key) for key in keys]))
    else:
        _print_table(keys)
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from igd_server.http.keys import keys_to_change, write_keys

    with keys_to_change(args.keys_file) as keys:
        revoked = next((key for key in keys.keys if key.id == args.id), None)
        if revoked is None:
            raise InputError(f"keys file {args.keys_file}: no key has the id {args.id!r}")
        write_keys(args.keys_file, keys.without(revoked.id))
    if args.json:
        print(json.dumps(_facts(revoked)))
    else:
        print(f"revoked {revoked.id} ({_printable(revoked.name)})")
    return 0


def _scopes(text: str) -> frozenset[Scope]:
    from igd_server.http.keys import SCOPES

    scopes = frozenset(part.strip() for part in text.split(","))
    unknown = sorted(scopes.difference(SCOPES))
    if unknown:
        raise InputError(f"--scopes: {unknown[0]!r} is none of {', '.join(SCOPES)}")
    return cast("frozenset[Scope]", scopes)


def _expiry(text: str) -> datetime:
    now = datetime.now(UTC).replace(microsecond=0)
    if _DAYS.fullmatch(text):
        return now + timedelta(days=int(text[:-1]))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--expires: {text!r} is neither days, as 90d, nor a time, as 2027-01-31T00:00:00Z") from None
    if when.tzinfo is None:
        raise InputError(f"--expires: {text!r} names no time zone; end it with Z for UTC")
    if when <= now:
        raise InputError(f"--expires: {text!r} is over")
    return when.astimezone(UTC)


def _facts(key: StoredKey) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"sha256", "scopes"}) | {
        "scopes": sorted(key.scopes),
        "expired": key.has_expired(),
    }


def _print_table(keys: Iterable[StoredKey]) -> None:
    rows = [("id", "name", "scopes", "created", "expires")]
    for key in keys:
        expires = "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d}"
        rows.append(
            (
                key.id,
                _printable(key.name),
                ",".join(sorted(key.scopes)) or "none",
                f"{key.created_at:%Y-%m-%d}",
                f"{expires} (over)" if key.has_expired() else expires,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _printable(text: str) -> str:
    """Without what would move the cursor or colour the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
