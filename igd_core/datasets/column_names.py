"""What columns of shops' exports are called: names by role, and the rule by which a name matches."""

from __future__ import annotations

import re
import unicodedata
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Role: TypeAlias = Literal["item_id", "title", "user_id", "timestamp", "rating", "kind"]

_WRITTEN: Final[Mapping[Role, str]] = MappingProxyType(
    {
        "item_id": """item_id item itemid product_id product productid article_id article sku asin parent_asin isbn ean
            gtin stock_code stockcode movie_id movie movieid film_id book_id song_id track_id game_id content_id
            product_code item_code artikelnr artikelnummer artikel_nr artikel_id artikel produkt_id produkt
            id_produit produit id_producto producto""",
        "title": """title name product_name prod_name product_title productname item_name item_title movie_title
            book_title article_name display_name label titel bezeichnung artikelname titre nom titulo nombre""",
        "user_id": """user_id user userid customer_id customer customerid client_id client visitor_id visitor member_id
            member account_id reviewer_id reviewerid buyer_id shopper_id person_id uid kunde kundennr kundennummer
            kunden_nr kunden_id id_client cliente id_cliente user_pseudo_id""",
        "timestamp": """timestamp time datetime date date_time created_at event_time occurred_at ordered_at order_date
            purchased_at bought_at review_time ts unix_time unixtime unix_timestamp t epoch dt when zeit zeitpunkt datum
            zeitstempel fecha""",
        "rating": "rating stars star_rating score overall bewertung sterne",
        "kind": "kind event_type event event_name action action_type interaction_type",
    }
)
_NAMES: Final = {role: frozenset(names.split()) for role, names in _WRITTEN.items()}
_OF_ITEMS_ALONE = frozenset({"id", "code", "handle"})
_NUMBERED = "(_?(id|no|nr|num|number|nummer|key|code))?"
_NO_ITEM = re.compile(
    f"(order|session|invoice|basket|cart|transaction|receipt|beleg|rechnungs?|bestell|sitzungs?){_NUMBERED}"
    "|quantity|qty|amount|price|total|count|menge|anzahl|preis|betrag"
)
"""Names of what holds several items, and of amounts."""
_NO_PERSON = re.compile(f"(event|line|page|visit|row|store){_NUMBERED}|discount|revenue|dwell|query|zip|url|width")
"""And names of what one person has several of, or shares with others."""
_PERSON_WORDS = frozenset(
    {"user", "users", "customer", "client", "member", "visitor", "buyer", "shopper", "reviewer", "account", "person"}
    | {"kunde", "kunden", "cliente", "orderer"}
)
_PERSON_NUMBERS = frozenset({"id", "no", "nr", "num", "number", "key", "hash", "email", "mail", "guid", "uuid", "ref"})
_TIME_ENDS = ("_time", "_at", "_date", "datum", "_timestamp", "_ts", "_zeit")
_OTHER_TIMES = re.compile(
    "birth|valid|expir|login|regist|sign_?up|export|deliver|ship|update|modif|release|first_seen|last_|gebur|geander"
)
"""In names of times at which nobody chose anything."""
_PARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def plain_name(name: str) -> str:
    """A name in small letters, with underscores between its words and without accents.

    >>> plain_name("Product ID"), plain_name("userId"), plain_name(" Título ")
    ('product_id', 'user_id', 'titulo')
    """
    spaced = _PARTS.sub("_", name)
    bare = "".join(c for c in unicodedata.normalize("NFKD", spaced) if not unicodedata.combining(c))
    return re.sub(r"[^0-9a-z]+", "_", bare.casefold()).strip("_")


def says(name: str, role: Role, *, of_items: bool = False) -> bool:
    """Whether a column of this name is called after the role; ``id`` is an item's in a file of items alone."""
    plain = plain_name(name)
    return plain in _NAMES[role] or (of_items and role == "item_id" and plain in _OF_ITEMS_ALONE)


def role_of(name: str) -> Role | None:
    """The role that a column of events is called after."""
    return next((role for role in _NAMES if says(name, role)), None)


def ends_like_a_time(name: str) -> bool:
    """Whether a column is called as one of times often is: ``unixReviewTime``, ``Bestelldatum``, ``purchased_at``."""
    return plain_name(name).endswith(_TIME_ENDS)


def says_another_time(name: str) -> bool:
    """Whether a column is called after a time at which nobody chose anything: ``birth_date``, ``delivered_at``."""
    return bool(_OTHER_TIMES.search(plain_name(name)))


def says_no_item(name: str) -> bool:
    """Whether a column is called after an order, a session, an amount: no item, though the numbers may be the same."""
    return bool(_NO_ITEM.fullmatch(plain_name(name)))


def says_a_person(name: str) -> bool:
    """Whether a name ends in a word for a person or a person's number: ``line_user_id``, not ``user_agent``."""
    words = plain_name(name).split("_")
    if words[-1] in _PERSON_NUMBERS:
        words.pop()
    return bool(words) and words[-1] in _PERSON_WORDS


def says_no_person(name: str) -> bool:
    """Whether a column is called after an order, a session, an amount: no person, however few its cells are."""
    return says_no_item(name) or bool(_NO_PERSON.fullmatch(plain_name(name)))
