from __future__ import annotations

import pytest
from igd_server.api import problems
from igd_server.api.problems import FORBIDDEN, Finding, ProblemKind, Refused, finding_of, response_of
from igd_server.recommend.admission import Overloaded

from igd_core.errors import (
    ArtifactError,
    DeadlineExceeded,
    EngineClosed,
    IGDError,
    InputError,
    QueryError,
    StoreError,
    StoreUnavailable,
)

KINDS = [kind for kind in vars(problems).values() if isinstance(kind, ProblemKind)]


@pytest.mark.parametrize(
    ("error", "name", "status"),
    [
        (InputError("k: 0"), "invalid-field", 422),
        (QueryError("k", "0"), "invalid-field", 422),
        (DeadlineExceeded("late"), "deadline-exceeded", 504),
        (EngineClosed("gone"), "engine-unavailable", 503),
        (StoreUnavailable("redis://10.0.0.7:6379: connection refused"), "store-unavailable", 503),
        (StoreError("redis://10.0.0.7:6379: WRONGTYPE"), "internal-error", 500),
        (ArtifactError("/srv/films/trie.safetensors: altered"), "internal-error", 500),
        (IGDError("?"), "internal-error", 500),
        (Overloaded("queue-full", "64 requests are waiting", retry_after_s=7), "overloaded", 503),
        (Refused(Finding(kind=FORBIDDEN, detail="no")), "forbidden", 403),
    ],
)
def test_each_error_is_one_kind_of_problem(error: IGDError, name: str, status: int) -> None:
    finding = finding_of(error)
    assert (finding.kind.name, finding.kind.status) == (name, status)


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("redis://10.0.0.7: refused"), StoreError("redis://10.0.0.7"), ArtifactError("/srv/films")],
)
def test_where_our_parts_are_is_no_clients_business(error: IGDError) -> None:
    assert finding_of(error).detail == finding_of(error).kind.title


def test_what_is_known_of_the_wait_goes_before_what_the_kind_says() -> None:
    finding = finding_of(Overloaded("expected-wait", "the queue is 6.50 s long", retry_after_s=7))
    problem = finding.kind.problem(finding.detail, "r")
    assert response_of(finding.kind, problem).headers["retry-after"] == "1"
    assert response_of(finding.kind, problem, finding.headers).headers["retry-after"] == "7"


def test_names_are_unique_and_only_what_may_pass_says_when_to_try_again() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert {kind.status for kind in KINDS if kind.retry_after_s is not None} == {429, 503}
