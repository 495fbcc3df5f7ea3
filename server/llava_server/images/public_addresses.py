"""The check that an IP address is public, so that the server may fetch an image from it.

The table contains every block of IANA's special-purpose address registries (iana-ipv4-special-registry and
iana-ipv6-special-registry, as of October 2026). This includes deprecated blocks and anycast relays, which
are globally reachable but never image hosts. ``ipaddress.is_global`` is not used, because its result depends
on the version of Python: it is true for 6to4 relays, and in older versions for translated loopback addresses.
"""

from __future__ import annotations

import ipaddress

__all__ = ["is_public"]

_NOT_PUBLIC_IPV4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network (RFC 791)
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # shared by a provider's customers (RFC 6598)
        "127.0.0.0/8",  # loopback (RFC 1122)
        "169.254.0.0/16",  # link-local and metadata services (RFC 3927)
        "172.16.0.0/12",  # private (RFC 1918)
        "192.0.0.0/24",  # protocol assignments (RFC 6890) and Oracle's metadata service
        "192.0.2.0/24",  # documentation (RFC 5737)
        "192.31.196.0/24",  # AS112 (RFC 7535)
        "192.52.193.0/24",  # multicast tunnels (RFC 7450)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "192.168.0.0/16",  # private (RFC 1918)
        "192.175.48.0/24",  # AS112 (RFC 7534)
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "198.51.100.0/24",  # documentation (RFC 5737)
        "203.0.113.0/24",  # documentation (RFC 5737)
        "224.0.0.0/4",  # multicast (RFC 5771)
        "240.0.0.0/4",  # reserved (RFC 1112) and broadcast (RFC 919)
        "168.63.129.16/32",  # Azure's host agent: public according to IANA
    )
)
# Global unicast addresses (RFC 4291). Everything outside is special, unallocated or multicast.
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_IPV6 = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments (RFC 2928), including Teredo (RFC 4380) and ORCHID (RFC 7343)
        "2001:db8::/32",  # documentation (RFC 3849)
        "2002::/16",  # 6to4 (RFC 3056)
        "2620:4f:8000::/48",  # AS112 (RFC 7534)
        "3ffe::/16",  # formerly 6bone (RFC 3701)
        "3fff::/20",  # documentation (RFC 9637)
    )
)
# A translator converts these addresses to the IPv4 address in the last 32 bits (RFC 6052). In networks with
# IPv6 only, DNS64 returns such an address for every public host that has only an IPv4 address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Return whether the text is a public IP address. The address of a NAT64 translator must be so too."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in block for block in _NOT_PUBLIC_IPV4)
    return address in _UNICAST and not any(address in block for block in _NOT_PUBLIC_IPV6)
