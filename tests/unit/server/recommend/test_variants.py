from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from igd_server.variants import Variant, assign
from pydantic import ValidationError

USERS = [f"user-{number}" for number in range(20_000)]
WEIGHTS = st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any)


def variants(*weights: float) -> list[Variant]:
    return [Variant(name=f"v{number}", weight=weight) for number, weight in enumerate(weights)]


def test_each_gets_its_share_of_users() -> None:
    drawn = Counter(assign(user, variants(1, 0, 3, 6)).name for user in USERS)
    assert drawn["v1"] == 0
    for name, share in (("v0", 0.1), ("v2", 0.3), ("v3", 0.6)):
        # Four standard deviations of a binomial count.
        assert abs(drawn[name] - share * len(USERS)) < 4 * (len(USERS) * share * (1 - share)) ** 0.5


@given(user=st.text(min_size=1, max_size=256), weights=WEIGHTS)
def test_a_user_is_drawn_by_a_hash_of_the_id_alone(user: str, weights: list[int]) -> None:
    user = user.encode("utf-8", "ignore").decode() or "u"
    digest = hashlib.blake2b(user.encode(), digest_size=8).digest()
    # An oracle in whole numbers: as many tickets as weights, the hash scaled down to one of them.
    ticket = int.from_bytes(digest) * sum(weights) >> 64
    owner = next(at for at, end in enumerate(itertools.accumulate(weights)) if ticket < end)
    assert assign(user, variants(*weights)).name == f"v{owner}"


@given(user=st.sampled_from(USERS), weights=WEIGHTS, scale=st.sampled_from([0.001, 0.5, 7, 1e5]))
def test_only_the_ratio_of_weights_counts(user: str, weights: list[int], scale: float) -> None:
    scaled = [weight * scale for weight in weights]
    assert assign(user, variants(*scaled)).name == assign(user, variants(*weights)).name


def test_a_larger_share_takes_users_and_gives_none_away() -> None:
    before = {user: assign(user, variants(1, 1)).name for user in USERS}
    after = {user: assign(user, variants(1, 2)).name for user in USERS}
    moves = Counter((before[user], after[user]) for user in USERS if before[user] != after[user])
    assert set(moves) == {("v0", "v1")}
    assert moves["v0", "v1"] == pytest.approx(len(USERS) / 6, rel=0.1)


def test_a_variant_of_weight_zero_changes_nobodys() -> None:
    for user in USERS[:500]:
        assert assign(user, variants(0, 2, 0, 3, 0)).name == {"v0": "v1", "v1": "v3"}[assign(user, variants(2, 3)).name]


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 65},
        {"weight": -1},
        {"weight": float("nan")},
        {"alpha": 1.5},
        {"forced_weight": -0.5},
        {"beams": 0},
        {"beams": 201},
        {"colour": "red"},
    ],
)
def test_a_variant_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Variant(**({"name": "v"} | change))  # type: ignore[arg-type]
