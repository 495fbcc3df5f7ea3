"""Third-party clients work unchanged with the server. ``make interop`` runs all checks of all clients."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.interop.catalog import CLIENTS, FOLDER, Client
from tests.interop.programs import Programs
from tests.interop.scene import COLOR

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),  # the first test of a client creates its environment and runs all of its checks
    pytest.mark.skipif(sys.version_info < (3, 11), reason="the clients' packages require Python 3.11"),
]


def selected_clients(config: pytest.Config) -> list[Client]:
    return [client for client in CLIENTS if client.is_light or config.getoption("--all-clients")]


def selected_checks(config: pytest.Config, client: Client) -> list[str]:
    skipped = frozenset() if config.getoption("--all-clients") else client.slow_checks
    return [check for check in client.checks if check not in skipped]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    clients = selected_clients(metafunc.config)
    if "check" in metafunc.fixturenames:
        pairs = [(client, check) for client in clients for check in selected_checks(metafunc.config, client)]
        metafunc.parametrize(("client", "check"), pairs, ids=[f"{one.name}-{check}" for one, check in pairs])
    elif "client" in metafunc.fixturenames:
        with_example = [client for client in clients if client.example]
        metafunc.parametrize("client", with_example, ids=[client.name for client in with_example])


def test_a_feature_works(
    client: Client, check: str, programs_of: Callable[[Client], Programs], request: pytest.FixtureRequest
) -> None:
    error = programs_of(client).error_of(check, selected_checks(request.config, client))
    assert error is None, error


def test_the_documented_example_works(client: Client, programs_of: Callable[[Client], Programs]) -> None:
    result = programs_of(client).run_example()
    assert result.returncode == 0, result.stderr
    # The examples for benchmarks are shell commands, which print a report.
    assert client.example and (client.example.suffix == ".sh" or COLOR in result.stdout.lower())


def test_every_folder_belongs_to_a_client() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(client.name for client in CLIENTS)


def test_the_slow_checks_exist() -> None:
    assert [client.name for client in CLIENTS if not client.slow_checks <= set(client.checks)] == []
