"""Find out which columns of two exports, of items and of events, are what: by their cells, and by their names.

Cells decide that a column can be something at all; a name decides among those that can. Where two are left, nothing is
guessed: `Unclear` names them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from igd_core.datasets.column_names import (
    ends_like_a_time,
    plain_name,
    role_of,
    says,
    says_a_person,
    says_another_time,
    says_no_item,
    says_no_person,
)
from igd_core.datasets.source_table import listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from igd_core.datasets.column_names import Role
    from igd_core.datasets.column_profiles import ColumnProfile

_LEAST_SHARED = 0.5
"""Share of the events whose item must be among the items, for two columns to be taken for the same ids."""
_MOST_KINDS = 30
_ROLES: Mapping[str, frozenset[str]] = {
    "items": frozenset({"item_id", "title"}),
    "events": frozenset({"item_id", "user_id", "timestamp", "rating", "kind"}),
}
_WORDS = {
    "item_id": "the item's id",
    "title": "the item's title",
    "user_id": "the person",
    "timestamp": "the time",
    "rating": "the rating",
    "kind": "the kind of event",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unclear:
    """A role that no column has, or several have.

    Attributes:
        part: ``items`` or ``events``.
        role: what is looked for.
        columns: that it may be; empty where none can.
        why: in words, where it is more than that.
    """

    part: str
    role: Role
    columns: tuple[str, ...] = ()
    why: str = ""

    def told(self, file: str, all_columns: Sequence[str]) -> str:
        """As one line of a message about ``file``."""
        settle = (
            f"--columns {self.role}=NAME, or {self.role} under [{self.part}] columns of a --layout file, says which"
        )
        if self.columns:
            names = " or ".join(map(repr, self.columns))
            return f"{file}: {_WORDS[self.role]} could be column {names}{self.why} ({settle})"
        return f"{file}: no column looks like {_WORDS[self.role]}{self.why}; it has {listed(all_columns)} ({settle})"


@dataclass(slots=True, kw_only=True)
class Roles:
    """Columns by role, as far as they are found.

    Attributes:
        items: the name in the file of items, by role.
        events: the name in the file of events, by role.
        shared: share of the events whose item is among the items.
        unclear: what is not found.
    """

    items: dict[Role, str] = field(default_factory=dict)
    events: dict[Role, str] = field(default_factory=dict)
    shared: float = 0.0
    unclear: list[Unclear] = field(default_factory=list)


def find_roles(
    items: Mapping[str, ColumnProfile], events: Mapping[str, ColumnProfile], said: Mapping[str, Mapping[str, str]]
) -> Roles:
    """The roles of the columns.

    Args:
        items: profiles of the file of items, by column.
        events: of the file of events.
        said: for ``items`` and ``events``, what a person says each role's column is called.
    """
    roles = Roles()
    for part, profiles, found in (("items", items, roles.items), ("events", events, roles.events)):
        for role, name in said[part].items():
            if name in profiles:
                found[role] = name  # type: ignore[index]  # names that are no role are the reader's to judge
            elif role in _ROLES[part] and name not in items and name not in events:
                why = f": {name!r}, which the layout or a flag names, is not there"
                roles.unclear.append(Unclear(part=part, role=role, why=why))  # type: ignore[arg-type]
    _time(events, roles)
    _item(items, events, roles)
    _title(items, roles)
    _user(events, roles)
    _optional("rating", events, roles)
    _optional("kind", events, roles)
    return roles


def _time(events: Mapping[str, ColumnProfile], roles: Roles) -> None:
    """The time, by names before cells: a number of 9 digits and more may be an id."""
    if "timestamp" in roles.events:
        return
    able = [
        name
        for name, profile in events.items()
        if profile.is_time and not _taken(name, roles.events) and role_of(name) in {None, "timestamp"}
    ]
    named = [name for name in able if says(name, "timestamp")]
    unread = [name for name in events if says(name, "timestamp") and name not in able]
    if not named and unread:
        named = [name for name in able if any(plain_name(each) in plain_name(name) for each in unread)]
    if named:
        _settle("events", "timestamp", named, roles)
        return
    fit = [name for name in able if not says_another_time(name)]
    sure = [name for name in fit if events[name].is_written_time or ends_like_a_time(name)]
    if not unread and len(sure or fit) == 1 and (sure or not _date_like(events)):
        roles.events["timestamp"] = (sure or fit)[0]
        return
    why = ""
    if unread := unread or ([] if sure else _date_like(events)):
        cell = next(iter(events[unread[0]].sample), "")
        why = f": column {unread[0]!r} holds {cell!r}, which is no time: ISO 8601 or a number since 1970 is"
    elif not able:
        why = ": `igd start` and `igd data prepare` need to know what came first (`igd build` alone does not)"
    roles.unclear.append(Unclear(part="events", role="timestamp", columns=tuple(sure or fit or able), why=why))


def _date_like(events: Mapping[str, ColumnProfile]) -> list[str]:
    """Columns that no name tells, of days or times that are written in a way which is not read."""
    return [name for name, each in events.items() if role_of(name) is None and each.is_date_like and not each.is_time]


def _item(items: Mapping[str, ColumnProfile], events: Mapping[str, ColumnProfile], roles: Roles) -> None:
    """The id of an item, in both files: columns that hold the same ids, called alike if there are several."""
    ours = [roles.items["item_id"]] if "item_id" in roles.items else _ids_of_items(items)
    theirs = [roles.events["item_id"]] if "item_id" in roles.events else _ids_of_events(events, roles)
    values = {name: pc.unique(pc.drop_null(items[name].cells)) for name in ours}
    shared = {(a, b): events[b].among(values[a]) for a, b in product(ours, theirs)}
    fitting = [
        (a, b)
        for (a, b), share in shared.items()
        if share >= _LEAST_SHARED and (plain_name(a) == plain_name(b) or not says_no_item(b))
    ]
    if len(ours) == len(theirs) == 1 and not fitting and ("item_id" in roles.events or not says_no_item(theirs[0])):
        fitting = [(ours[0], theirs[0])]  # somebody said so, or nothing else can be: unknown items are told later
    elif not fitting:
        fitting = [(a, b) for a, b in shared if says(a, "item_id", of_items=True) and says(b, "item_id")]
    best = _best_named(fitting)
    doubt = _doubt(best[0], items, events, roles) if len(best) == 1 else None
    if doubt is not None:
        roles.unclear.append(doubt)
    elif len(best) == 1:
        ((a, b),) = best
        roles.items["item_id"], roles.events["item_id"] = a, b
        roles.shared = shared[a, b]
    else:
        _unsettled_item(best, items, events, roles, able=bool(ours and theirs))


def _unsettled_item(
    pairs: Sequence[tuple[str, str]],
    items: Mapping[str, ColumnProfile],
    events: Mapping[str, ColumnProfile],
    roles: Roles,
    *,
    able: bool,
) -> None:
    """What is known of the item's ids where several pairs of columns, or none, hold the same."""
    for part, found, at in (("items", roles.items, 0), ("events", roles.events, 1)):
        names = tuple(dict.fromkeys(pair[at] for pair in pairs))
        if "item_id" in found:
            continue
        if len(names) == 1:
            found["item_id"] = names[0]
        else:
            why = "" if names else _why_no_item(part, able, items if part == "items" else events)
            roles.unclear.append(Unclear(part=part, role="item_id", columns=names, why=why))


def _doubt(
    pair: tuple[str, str], items: Mapping[str, ColumnProfile], events: Mapping[str, ColumnProfile], roles: Roles
) -> Unclear | None:
    """Why a pair of columns that hold the same ids is not taken for the item's without asking; None: it is.

    Numbers of different things are the same by chance: 1, 2 and 3 are places in a list, quantities, and ids.
    """
    if "item_id" in roles.items and "item_id" in roles.events:
        return None
    a, b = pair
    named_a = [name for name, each in items.items() if says(name, "item_id", of_items=True) and not each.is_list]
    named_b = [name for name, each in events.items() if says(name, "item_id") and not each.is_list]
    called_alike = [(x, y) for x, y in product(named_a, named_b) if plain_name(x) == plain_name(y)]
    of_both = called_alike or list(product(named_a, named_b))
    for x, y in [pair] if pair in of_both else of_both:
        one, other = items[x], events[y]
        if (
            other.among(pc.unique(pc.drop_null(one.cells)))
            < _LEAST_SHARED
            <= other.without_zeros.among(pc.unique(pc.drop_null(one.without_zeros.cells)))
        ):
            theirs, ours = (
                next((cell for cell in each.sample if cell.startswith("0")), each.sample[0]) for each in (other, one)
            )
            why = (
                f": column {y!r} holds {theirs!r}, and {x!r} of the items {ours!r}: "
                "one of the files has lost the leading zeros; export the column as text"
            )
            return Unclear(part="events", role="item_id", why=why)
    if not events[b].is_whole_number or plain_name(a) == plain_name(b) or (a in named_a and b in named_b):
        return None
    by_chance = a not in named_a and b not in named_b and bool(named_a and named_b)
    if called_alike or by_chance:
        of_items = "item_id" not in roles.items and a not in named_a
        columns = (a, *named_a) if of_items else (b, *named_b)
        return Unclear(part="items" if of_items else "events", role="item_id", columns=tuple(dict.fromkeys(columns)))
    return None


def _why_no_item(part: str, able: bool, profiles: Mapping[str, ColumnProfile]) -> str:
    """Why no column of a file is the item's id; ``able``: whether both files have columns that can be."""
    if able:
        return ": no two columns of the files hold the same ids"
    for name, each in profiles.items():
        if says(name, "item_id", of_items=part == "items") and each.is_list:
            return f": column {name!r} holds lists, where a row names one item"
        if says(name, "item_id", of_items=part == "items") and each.is_fraction:
            return f": column {name!r} holds {each.sample[0]!r}, which has a decimal point, as no id has"
    return ""


def _ids_of_items(items: Mapping[str, ColumnProfile]) -> list[str]:
    """Columns of items that can be ids: nearly all cells differ."""
    able = [name for name, each in items.items() if each.is_id and each.distinct > 0.8 and not each.is_written_time]
    return [name for name in able if not says(name, "title")] or able


def _ids_of_events(events: Mapping[str, ColumnProfile], roles: Roles) -> list[str]:
    able = [name for name, each in events.items() if each.is_id and not each.is_written_time]
    free = [name for name in able if not _taken(name, roles.events)]
    return [name for name in free if role_of(name) in {None, "item_id", "title"}]


def _best_named(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the pairs whose names say most."""

    def weight(pair: tuple[str, str]) -> int:
        a, b = pair
        alike = plain_name(a) == plain_name(b) and says(b, "item_id")
        exact = (a == "item_id") + (b == "item_id")
        return 16 * alike + 4 * exact + 2 * says(b, "item_id") + says(a, "item_id", of_items=True)

    most = max(map(weight, pairs), default=0)
    return [pair for pair in pairs if weight(pair) == most]


def _title(items: Mapping[str, ColumnProfile], roles: Roles) -> None:
    if "title" in roles.items:
        return
    able = [
        name
        for name, each in items.items()
        if not each.is_list and each.sample and not _taken(name, roles.items) and not each.is_time
    ]
    named = [name for name in able if says(name, "title")]
    if "title" in named:
        named = ["title"]
    words = [name for name in able if items[name].is_words and not items[name].is_description]
    distinct = [name for name in words if items[name].distinct > 0.5 and items[name].separator is None]
    _settle("items", "title", named or distinct, roles)


def _user(events: Mapping[str, ColumnProfile], roles: Roles) -> None:
    if "user_id" in roles.events:
        return
    free = {name: each for name, each in events.items() if not each.is_list and not _taken(name, roles.events)}
    able = [name for name, each in free.items() if each.filled and each.distinct < 1 and not each.is_written_time]
    named = [name for name in able if says(name, "user_id")]
    if "user_id" in named:
        named = ["user_id"]
    if not named and (called := [name for name in events if says(name, "user_id") and name not in able]):
        each = events[called[0]]
        if each.is_list:
            why = f": column {called[0]!r} holds lists, where a row names one person"
        elif not each.filled:
            why = f": column {called[0]!r} is empty"
        elif each.is_written_time:
            why = f": column {called[0]!r} holds times, such as {each.sample[0]!r}"
        else:
            why = f": in column {called[0]!r} nobody stands twice, and one event of a person tells nothing"
        roles.unclear.append(Unclear(part="events", role="user_id", why=why))
        return
    named = named or [name for name in able if says_a_person(name)]
    unnamed = [
        name
        for name in able
        if role_of(name) is None
        and events[name].is_id
        and not events[name].is_time
        and not events[name].is_date_like
        and len(set(events[name].sample)) > _MOST_KINDS
    ]
    if not named and len(unnamed) == 1 and says_no_person(unnamed[0]):
        why = f": {unnamed[0]!r} is called after what one person has several of"
        roles.unclear.append(Unclear(part="events", role="user_id", why=why))
        return
    _settle("events", "user_id", named or unnamed, roles)


def _optional(role: Role, events: Mapping[str, ColumnProfile], roles: Roles) -> None:
    """A column that is taken where its name says so and its cells agree; else there is none."""
    if role in roles.events:
        return
    for name, each in events.items():
        agrees = each.is_number if role == "rating" else len(set(each.sample)) <= _MOST_KINDS and not each.is_number
        if says(name, role) and each.sample and agrees and not _taken(name, roles.events):
            roles.events[role] = name
            return


def _settle(part: str, role: Role, columns: Sequence[str], roles: Roles) -> None:
    found = roles.items if part == "items" else roles.events
    if len(columns) == 1:
        found[role] = columns[0]
    else:
        roles.unclear.append(Unclear(part=part, role=role, columns=tuple(columns)))


def _taken(name: str, found: Mapping[Role, str]) -> bool:
    return name in found.values()
