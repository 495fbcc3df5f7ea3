"""A busy port is told before anything starts, with who has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from llava_cli import app
from llava_cli.up.port import PortUnavailable, check_port, owner_of
from typer.testing import CliRunner


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_busy_port_names_its_owner_and_the_way_out(taken: int) -> None:
    with pytest.raises(PortUnavailable) as caught:
        check_port("127.0.0.1", taken)
    assert f"port {taken} on 127.0.0.1 is taken by" in str(caught.value)
    assert f"(pid {os.getpid()})" in str(caught.value)
    assert "--port" in str(caught.value)


def test_up_ends_with_one_line_and_code_two_on_a_busy_port(taken: int) -> None:
    result = CliRunner().invoke(app, ["up", "--model", "echo", "--port", str(taken)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"port {taken}" in result.stderr


def test_a_free_port_is_itself_and_zero_is_any() -> None:
    free_port = check_port("127.0.0.1", 0)
    assert free_port > 0
    assert check_port("127.0.0.1", free_port) == free_port


def test_ipv6_and_names_are_understood() -> None:
    assert check_port("localhost", 0) > 0
    if socket.has_ipv6:
        assert check_port("::1", 0) > 0


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_refused_with_the_reason(host: str) -> None:
    with pytest.raises(PortUnavailable, match=f"cannot listen on {host}"):
        check_port(host, 0)


def test_nobody_owns_a_free_port() -> None:
    assert owner_of(check_port("127.0.0.1", 0)) is None
