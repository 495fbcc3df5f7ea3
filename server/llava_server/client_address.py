"""The address of a client, for limits per client."""

from __future__ import annotations

import ipaddress

__all__ = ["client_of"]

_IPV6_PREFIX = 64  # one client usually has all addresses of such a network


def client_of(peer: tuple[str, int] | None) -> str | None:
    """Return the IPv4 address or IPv6 network of a peer, or None for a Unix socket.

    uvicorn replaces the host by that in the header X-Forwarded-For if the peer is a proxy on this machine. If
    it is not an IP address, it is returned as it is.
    """
    if peer is None:
        return None
    try:
        address = ipaddress.ip_address(peer[0].partition("%")[0])
    except ValueError:
        return peer[0]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)
