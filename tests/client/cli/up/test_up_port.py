"""If the port is in use, ``up`` names the process that is using it and does not start anything."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from llava_cli import create_app
from llava_cli.up.port import PortUnavailable, check_port, owner_of
from typer.testing import CliRunner


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_the_error_for_a_used_port_names_the_owner_and_the_remedy(used_port: int) -> None:
    with pytest.raises(PortUnavailable) as caught:
        check_port("127.0.0.1", used_port)
    assert f"Port {used_port} on 127.0.0.1 is in use by" in str(caught.value)
    assert f"(pid {os.getpid()})" in str(caught.value)
    assert "--port" in str(caught.value)


def test_up_prints_one_line_and_exits_with_code_two_if_the_port_is_used(used_port: int) -> None:
    result = CliRunner().invoke(create_app(), ["up", "--model", "echo", "--port", str(used_port)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"Port {used_port}" in result.stderr


def test_a_free_port_is_returned_and_zero_selects_one() -> None:
    free_port = check_port("127.0.0.1", 0)
    assert free_port > 0
    assert check_port("127.0.0.1", free_port) == free_port


def test_ipv6_addresses_and_host_names_are_supported() -> None:
    assert check_port("localhost", 0) > 0
    if socket.has_ipv6:
        assert check_port("::1", 0) > 0


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_rejected_with_the_reason(host: str) -> None:
    with pytest.raises(PortUnavailable, match=f"Cannot listen on {host}"):
        check_port(host, 0)


def test_a_free_port_has_no_owner() -> None:
    assert owner_of(check_port("127.0.0.1", 0)) is None
