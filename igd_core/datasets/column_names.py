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
            purchased_at bought_at review_time ts unix_time unixtime unix_timestamp when zeit zeitpunkt datum
            zeitstempel fecha""",
        "rating": "rating stars star_rating score overall bewertung sterne",
        "kind": "kind event_type event event_name action action_type interaction_type",
    }
)
_NAMES: Final = {role: frozenset(names.split()) for role, names in _WRITTEN.items()}
_OF_ITEMS_ALONE = frozenset({"id", "code", "handle"})
_TIME_ENDS = ("_time", "_at", "_date", "datum", "_timestamp", "_ts", "_zeit")
_OF_NO_ITEM = re.compile(
    "order|session|invoice|basket|cart|transaction|receipt|quantity|qty|amount|price|total|count"
    "|beleg|rechnung|auftragsn|bestell|sitzung|menge|anzahl|preis|betrag"
)
"""How words begin for what holds several items, or for amounts."""
_OF_NO_PERSON = re.compile("event|line|page")
"""And for what one person has several of besides."""
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
    """Whether a column is called as one of times often is: ``unixReviewTime``, ``Bestelldatum``, ``shipped_at``."""
    return plain_name(name).endswith(_TIME_ENDS)


def says_no_item(name: str) -> bool:
    """Whether a column is called after an order, a session, an amount: no item, though the numbers may be the same."""
    return any(map(_OF_NO_ITEM.match, plain_name(name).split("_")))


def says_no_person(name: str) -> bool:
    """Whether a column is called after an order, a session, an amount, a time: no person, however few its cells are."""
    words = plain_name(name).split("_")
    return says_no_item(name) or any(map(_OF_NO_PERSON.match, words)) or ends_like_a_time(name)
