from __future__ import annotations

import string
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd_core.errors import InputError
from igd_core.store.names import without_secrets
from igd_core.store.open import open_store
from igd_core.store.redis.address import Host, RedisAddress

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", RedisAddress(kind="server", hosts=(Host(name="localhost", port=6379),))),
        ("redis://cache", RedisAddress(kind="server", hosts=(Host(name="cache", port=6379),))),
        ("redis://cache:7000/3", RedisAddress(kind="server", hosts=(Host(name="cache", port=7000),), database=3)),
        ("redis://[::1]:7000/", RedisAddress(kind="server", hosts=(Host(name="::1", port=7000),))),
        (
            "redis://ann:p%40ss%2F@cache",
            RedisAddress(
                kind="server",
                hosts=(Host(name="cache", port=6379),),
                credentials={"username": "ann", "password": "p@ss/"},
            ),
        ),
        (
            "redis://:secret@cache",
            RedisAddress(kind="server", hosts=(Host(name="cache", port=6379),), credentials={"password": "secret"}),
        ),
        (
            "redis+sentinel://:pw@a,b:7001/main/2?sentinel_password=other",
            RedisAddress(
                kind="sentinel",
                hosts=(Host(name="a", port=26379), Host(name="b", port=7001)),
                service="main",
                database=2,
                credentials={"password": "pw"},
                sentinel_credentials={"password": "other"},
            ),
        ),
        (
            "rediss+cluster://a:1,b:2,c",
            RedisAddress(
                kind="cluster",
                hosts=(Host(name="a", port=1), Host(name="b", port=2), Host(name="c", port=6379)),
                tls={"ssl": True, "ssl_check_hostname": True},
            ),
        ),
        (
            "rediss://cache?ssl_check_hostname=false",
            RedisAddress(
                kind="server",
                hosts=(Host(name="cache", port=6379),),
                tls={"ssl": True, "ssl_check_hostname": False},
            ),
        ),
    ],
)
def test_a_url_names_hosts_credentials_and_options(url: str, expected: RedisAddress) -> None:
    found = RedisAddress.parse(url)
    for name in ("kind", "hosts", "service", "database", "tls", "credentials", "sentinel_credentials"):
        assert getattr(found, name) == getattr(expected, name)
    for secret in ("ann", "p@ss", "p%40ss", "secret", "pw", "other"):
        assert secret not in found.label + repr(found)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://cache:port", "not of the form"),
        ("redis://cache:99999", "[Pp]ort"),
        ("redis://a,b", "several hosts"),
        ("redis://cache/zero", "database"),
        ("redis://cache/0/1", "database"),
        ("redis://cache/-1", "database"),
        ("redis+cluster://cache/1", "database 0 only"),
        ("redis+sentinel://cache", "no service"),
        ("redis+sentinel://cache/main/x", "database"),
        ("redis://cache?timeout=1", "no option 'timeout'"),
        ("redis://cache?ssl_ca_certs=/etc/hosts", "no option 'ssl_ca_certs'"),
        ("rediss://cache?ssl_ca_certs=/not/there.pem", "not a file"),
        ("rediss://cache?ssl_check_hostname=maybe", "'maybe' is not true or false"),
        ("redis://[::1", "IPv6"),
        ("redis+unix:///tmp/redis.sock", "URL"),
        ("gopher://cache", "URL"),
        ("localhost:6379", "URL"),
        ("", "URL"),
        ("memory://there", "URL"),
        ("file://host/tmp", "absolute path"),
        ("file:relative", "URL"),
        ("file:///tmp?x=1", "absolute path"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_line_that_says_why(url: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        open_store(url)
    assert str(caught.value).startswith("store: ")
    assert "\n" not in str(caught.value)


SECRET = "hunter2-S3CRET"  # noqa: S105 - nobody's


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}@cache:port/0",
        "redis://ann:{}@cache:99999",
        "redis://:{}",
        "redis://ann:{}",
        "redis://:a/{}@cache/x",
        "redis://:a?{}@cache:port",
        "redis://:a#{}@cache:port",
        "redis://:{}?a@cache:port",
        "redis://cache:port?password={}",
        "redis+sentinel://a:port/main?sentinel_password={}",
        "redis+sentinel://a:port/main?sentinel_password=a@{}",
        "gopher://ann:{}@cache",
        "ann:{}@cache",
        "{}",
        "rediss://:{}@cache?ssl_check_hostname=maybe",
    ],
)
def test_no_message_tells_a_password(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_store(url.format(SECRET))
    for piece in (SECRET, "hunter2", "S3CRET", "ann"):
        assert piece not in str(caught.value)


@given(st.text(alphabet=string.printable, min_size=6, max_size=20).map(lambda text: f"@{text}@"), st.data())
def test_whatever_stands_before_the_last_at_is_not_shown(password: str, data: st.DataObject) -> None:
    shown = without_secrets(f"redis://ann:{password}cache:7000/0{data.draw(st.sampled_from(['', '?x=1']))}")
    assert password.strip("@") not in shown.removeprefix("redis://")
    assert "ann" not in shown


def test_a_directory_is_named_by_its_path(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/with%20space")
    assert "with space" in repr(vars(store))
