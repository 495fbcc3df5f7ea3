"""``listen`` selects a local address for a host name and reports failures."""

from __future__ import annotations

import socket

import pytest
from llava_server.sockets import ListenError, listen

REMOTE_ADDRESS = "192.0.2.1"  # an address reserved for documentation (RFC 5737)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def found(_host: str, port: int, family: int, kind: int) -> list[tuple[object, ...]]:
        return [(family, kind, 0, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_the_address_of_this_machine_is_selected_if_a_name_has_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve_to(monkeypatch, REMOTE_ADDRESS, "127.0.0.1")
    with listen("server-admin", 0, flag="--admin-port") as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("addresses", [(REMOTE_ADDRESS,), ()])
def test_a_name_without_a_local_address_is_rejected(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    resolve_to(monkeypatch, *addresses)
    with pytest.raises(ListenError, match="Cannot listen on server-admin:9000"):
        listen("server-admin", 9000, flag="--admin-port")


def test_an_unknown_name_is_rejected() -> None:
    with pytest.raises(ListenError, match=r"Cannot listen on unknown\.invalid:9000"):
        listen("unknown.invalid", 9000, flag="--admin-port")
