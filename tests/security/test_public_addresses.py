"""Images are fetched only from public addresses, which excludes IANA's special-purpose registries."""

from __future__ import annotations

import ipaddress
import random

import pytest
from llava_server.images.public_addresses import is_public

# All blocks of the registries iana-ipv4-special-registry and iana-ipv6-special-registry (October 2026) except
# NAT64, followed by the blocks for multicast and by blocks that were special in the past.
SPECIAL = [
    *("0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32"),
    *("192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24"),
    *("192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32"),
    *("::1/128", "::/128", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23"),
    *("2001::/32", "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32"),
    *("2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16"),
    *("2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10"),
    *("224.0.0.0/4", "ff00::/8", "fec0::/10", "3ffe::/16", "::/96"),
]
NAT64 = "64:ff9b::"


@pytest.mark.parametrize("block", SPECIAL)
def test_no_address_of_a_special_purpose_block_is_public(block: str) -> None:
    network = ipaddress.ip_network(block)
    middle = network[network.num_addresses // 2]
    for address in (network[0], middle, network[-1]):
        assert not is_public(str(address)), f"{address} in {block}"
        if address.version == 4:
            assert not is_public(f"{NAT64}{address}"), "translated to IPv4"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
        ),
        *(
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.88.98.255",
            "192.88.100.0",
            "198.20.0.0",
        ),
        *("192.167.255.255", "192.169.0.0", "223.255.255.255", "168.63.129.15", "64:ff9b::8.8.8.8"),
        *("2001:200::1", "2001:4860:4860::8888", "2003::1", "2400::1", "2620:4f:7fff::1", "2620:4f:8001::1"),
    ],
)
def test_the_neighbours_of_special_purpose_blocks_are_public(address: str) -> None:
    assert is_public(address)


def test_every_address_that_python_considers_special_is_not_public() -> None:
    rng = random.Random(0)
    edges = [network[end] for network in map(ipaddress.ip_network, SPECIAL) for end in (0, -1)]
    near = [int(edge) + step for edge in edges if edge.version == 4 for step in (-1, 0, 1)]
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [*edges]
    addresses += [ipaddress.IPv4Address(number) for number in near if 0 <= number < 2**32]
    addresses += [ipaddress.IPv4Address(rng.getrandbits(32)) for _ in range(2000)]
    addresses += [ipaddress.IPv6Address(rng.getrandbits(128)) for _ in range(2000)]
    addresses += [ipaddress.IPv6Address(0x2001 << 112 | rng.getrandbits(112)) for _ in range(2000)]
    num_special = 0
    for address in addresses:
        if not address.is_global or address.is_multicast or address.is_reserved:
            num_special += 1
            assert not is_public(str(address)), address
    assert num_special > 1000
