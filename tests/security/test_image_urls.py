"""The fetcher never contacts hosts in ambiguous URLs or disguised internal addresses."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_server.images.errors import ImageError
from llava_server.images.host_rules import parse_image_url
from llava_server.images.public_addresses import is_public
from llava_server.settings import Settings
from pydantic import ValidationError

from tests.security.image_hosts import HOST, PUBLIC_ADDRESS, Resolver, fetch, ok_response

pytestmark = pytest.mark.anyio

IMAGE = b"the bytes of an image"
METADATA_ADDRESS = "169.254.169.254"

CONFUSING = [
    "http://127.0.0.1:6666\\@pictures.example/a",
    "https://pictures.example\\@127.0.0.1/a",
    "https://pictures.example\\.evil.test/a",
    "https://user@pictures.example/a",
    "https://pictures.example@127.0.0.1/a",
    "https://pictures.example:443@127.0.0.1/a",
    "https://pictures.example#@127.0.0.1/a",
    "https://127.0.0.1#@pictures.example/a",
    "https://pictures.example /a",
    " https://pictures.example/a",
    "https://pictures.example/a b",
    "https://pictures.example/\r\nHost: evil.test",
    "https://pictures.example\r\n.evil.test/a",
    "https://pictures.example\t/a",
    "https://pictures.example\x00.evil.test/a",
    "https://pictures.example./a",
    "https://pictures..example/a",
    "https://.pictures.example/a",
    "https://pictures.example:/a",
    "https://pictures.example:0443/a",
    "https://pictures.example:99999/a",
    "https://pictures.example:-1/a",
    "https://pictures.example:4a/a",
    "https:///pictures.example/a",
    "https:/pictures.example/a",
    "https:pictures.example/a",
    "//pictures.example/a",
    "https://pictures%2eexample/a",
    "https://pictures.example%00.evil.test/a",
    "https://pictures\u3002example/a",
    "https://p\u0131ctures.example/a",
    "https://\u212aelvin.example/a",
    "https://xn--/a",
    "https://pictures.example\uff0fa",
    "https://[::1]/a",
    "https://[::ffff:127.0.0.1]/a",
    "https://[::ffff:7f00:1]/a",
    "https://[64:ff9b::7f00:1]/a",
    "https://[pictures.example]/a",
    "https://[::1%25eth0]/a",
    "https://127.0.0.1/a",
    "https://127.1/a",
    "https://0/a",
    "https://0.0.0.0/a",
    "https://2130706433/a",
    "https://0x7f000001/a",
    "https://0x7f.0x0.0x0.0x1/a",
    "https://0177.0.0.1/a",
    "https://017700000001/a",
    "https://169.254.169.254/latest/meta-data/",
    "https://\u2460\u2461\u2466.0.0.1/a",
    "https://127.0.0.1.:443/a",
    "https://localhost/a",
    "https://localhost.localdomain/a",
    "https://localtest.me/a",
    "https://metadata.google.internal/a",
    "ftp://pictures.example/a",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "gopher://pictures.example/a",
    "jar:https://pictures.example/a!/b",
    "javascript:alert(1)",
    "https://" + "a" * 64 + ".example/a",
    "https://pictures.example/" + "a" * 2048,
]


@pytest.mark.parametrize("url", CONFUSING)
async def test_an_ambiguous_url_contacts_no_host(url: str) -> None:
    outcome = await fetch(url, {"/a": ok_response(IMAGE)}, allow_http=True)
    addresses = [address for address in outcome.addresses if address != PUBLIC_ADDRESS]
    assert addresses == []
    # This URL is unambiguous: the part after # is a fragment, which is dropped.
    if url != "https://pictures.example#@127.0.0.1/a":
        assert isinstance(outcome.result, str)
        assert outcome.addresses == []


@pytest.mark.parametrize("url", [url for url in CONFUSING if not url.isascii()])
def test_letters_that_fold_to_ascii_are_rejected(url: str) -> None:
    with pytest.raises(ImageError):
        parse_image_url(url, allow_http=True)


@given(st.text(alphabet="htps:/\\@.#?%[]0123456789axe\t pictures", max_size=40))
def test_the_host_of_a_parsed_url_is_always_a_plain_name(rest: str) -> None:
    for url in (f"https://{rest}", rest, f"http://{HOST}{rest}"):
        try:
            parsed = parse_image_url(url, allow_http=True)
        except ImageError:
            continue
        assert not set(parsed.host) - set("abcdefghijklmnopqrstuvwxyz0123456789.-")
        assert not set(parsed.target) & set("\\ \t\r\n#")
        with pytest.raises(OSError):
            socket.inet_aton(parsed.host)  # accepts every numeric notation of an IPv4 address


NOT_PUBLIC = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1"),
    *(
        "100.100.100.200",
        METADATA_ADDRESS,
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
    ),
    *("255.255.255.255", "168.63.129.16", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1"),
    *("2001:0:4136:e378:8000:63bf:80ff:fffe", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254"),
    *("fec0::1", "ff02::1", "100::1", "2001:db8::1", "::ffff:0:7f00:1", "not-an-address", ""),
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_name_with_an_internal_address_is_not_contacted(address: str) -> None:
    assert not is_public(address)
    outcome = await fetch(
        f"https://{HOST}/a", {"/a": ok_response(IMAGE)}, resolver=Resolver(pictures_example=[[address]])
    )
    assert (outcome.addresses, outcome.host.requests) == ([], [])
    assert "unreachable" in str(outcome.result)


@pytest.mark.parametrize(
    "address", [PUBLIC_ADDRESS, "1.1.1.1", "2606:4700::1111", "2a00:1450:4001:81b::200e"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "hosts", ["127.0.0.1", "[::1]", "2130706433", "https://a.example", "*", "a.example/", "a b.c"]
)
def test_host_rules_that_are_not_names_are_rejected_at_startup(hosts: str) -> None:
    with pytest.raises(ValidationError):
        Settings(image_hosts=hosts)


def test_host_rules_are_parsed_and_lowercased() -> None:
    settings = Settings(image_hosts="A.example, *.b.example:8443")
    assert settings.image_hosts == ("a.example", "*.b.example:8443")
