"""A server with the bundled model, shared by all clients, and the results of each client's checks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest

from tests.interop.catalog import Client
from tests.interop.environments import RegistryUnreachableError, environment
from tests.interop.programs import Programs
from tests.processes import running_site
from tests.wire.redis_server import running_redis

# In fp32, the bundled model generates the same tokens at every batch size.
TINY = {"model": "tiny", "device": "cpu", "threads": 1, "precision": "fp32"}


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis() as url, running_site(url, tmp_path_factory.mktemp("server"), **TINY) as site:
        yield site.url


@pytest.fixture(scope="session")
def programs_of(server_url: str) -> Callable[[Client], Programs]:
    """Return a function that creates a client's environment. It skips the test if that is not possible."""

    @functools.cache
    def prepare(client: Client) -> Programs | str:
        try:
            return Programs(client, environment(client), server_url)
        except RegistryUnreachableError as error:
            return str(error)

    def programs(client: Client) -> Programs:
        prepared = prepare(client)
        return pytest.skip(prepared) if isinstance(prepared, str) else prepared

    return programs
