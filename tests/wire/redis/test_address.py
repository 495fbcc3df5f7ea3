"""Redis URLs are parsed completely before a connection is opened, and errors never contain a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_wire.redis.address import RedisURLError, parse_redis_url


@pytest.mark.parametrize(
    ("url", "hosts", "options"),
    [
        ("redis://", (("localhost", 6379),), {}),
        ("redis://h:1/2", (("h", 1),), {"db": 2}),
        ("redis://[::1]:6380", (("::1", 6380),), {}),
        ("redis://user:p%40ss@h", (("h", 6379),), {"username": "user", "password": "p@ss"}),
        ("redis://:pass@h", (("h", 6379),), {"password": "pass"}),
        ("rediss://h?ssl_cert_reqs=none", (("h", 6379),), {"ssl_cert_reqs": "none"}),
        ("redis+cluster://a,b:7000", (("a", 6379), ("b", 7000)), {}),
        ("redis+sentinel://a:1,b/mymaster/3", (("a", 1), ("b", 26379)), {"db": 3}),
        ("unix:///tmp/socket?db=1", (), {"db": 1}),
    ],
)
def test_every_supported_form_is_parsed(url: str, hosts: object, options: object) -> None:
    address = parse_redis_url(url)
    assert (address.hosts, address.options) == (hosts, options)


def test_sentinel_has_its_own_credentials() -> None:
    address = parse_redis_url("redis+sentinel://u:p@a/main?sentinel_username=s&sentinel_password=q")
    assert address.service == "main"
    assert address.options == {"username": "u", "password": "p"}
    assert address.sentinel_options == {"username": "s", "password": "q"}


@given(st.text(st.characters(codec="ascii", exclude_characters="%", exclude_categories=["Cc"]), min_size=1))
def test_a_password_may_contain_any_character(password: str) -> None:
    assert parse_redis_url(f"redis://:{password}@h:1/2").options == {"password": password, "db": 2}


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("h:6379", "scheme"),
        ("http://h", "scheme"),
        ("redis://:secret@h/abc", "database"),
        ("redis://:secret@h:abc/0", "port"),
        ("redis://:secret@h:99999", "port is 99999"),
        ("redis://:secret:6379", "host"),
        ("redis://a,b", "several hosts"),
        ("redis+sentinel://:secret@h", "service name is missing"),
        ("redis+cluster://h/1", "only database 0"),
        ("redis://h?ssl_cert_reqs=none", "requires TLS"),
        ("rediss://h?ssl_cert_reqs=secret", "ssl_cert_reqs is invalid"),
        ("redis://h?password=secret", "not supported"),
        ("unix://secret", "path of the Unix socket"),
    ],
)
def test_an_invalid_url_is_rejected_without_printing_a_secret(url: str, error: str) -> None:
    with pytest.raises(RedisURLError, match=error) as caught:
        parse_redis_url(url)
    assert "secret" not in str(caught.value)


def test_an_address_does_not_print_its_password() -> None:
    assert "secret" not in repr(parse_redis_url("redis://:secret@h"))


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("redis://user:secret@queue", "queue:6379/0"),
        ("rediss://queue:6380/2?ssl_cert_reqs=none", "queue:6380/2"),
        ("unix://:secret@/run/redis.sock?db=3", "unix:///run/redis.sock?db=3"),
        ("redis+sentinel://u:secret@b,a:1/mymaster/4", "a:1,b:26379/mymaster/4"),
        ("redis+cluster://u:secret@b,a", "a:6379,b:6379/0"),
    ],
)
def test_the_location_distinguishes_databases_and_contains_no_secret(url: str, location: str) -> None:
    assert parse_redis_url(url).location == location
