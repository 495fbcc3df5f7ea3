"""Image stores for tests, which can lose their data or become unavailable."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from llava_wire.redis.keys import PREFIX

from tests.wire.conftest import running
from tests.wire.redis_server import RedisServer

__all__ = ["PLACES", "FolderPlace", "Place", "RedisPlace"]


class Place(Protocol):
    """The place of an image store: a Redis server or a folder."""

    def url_of(self, role: str) -> str:
        """Return the value of LLAVA_IMAGE_STORE for the server or the worker."""

    def digests(self) -> set[str]:
        """Return the digests of the images in the store."""

    def lose_data(self) -> None: ...

    def make_unavailable(self) -> None: ...

    def make_available(self) -> None:
        """End an outage. The data is lost if the place is a server."""


class RedisPlace:
    """A Redis server with the users in deploy/users.acl."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def url_of(self, role: str) -> str:
        return self._server.url_of("worker" if role == "worker" else "server")

    def digests(self) -> set[str]:
        prefix = f"{PREFIX}blob:"
        names = [key.decode() for key in self._server.client.scan_iter()]
        assert all(name.startswith(prefix) for name in names)
        return {name.removeprefix(prefix) for name in names}

    def lose_data(self) -> None:
        self._server.client.flushall()

    def make_unavailable(self) -> None:
        self._server.kill()

    def make_available(self) -> None:
        self._server.start()


class FolderPlace:
    """A folder that can be moved away, like an unmounted network folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def url_of(self, role: str) -> str:
        return f"file://{self.folder}"

    def digests(self) -> set[str]:
        return {path.stem for path in self.folder.rglob("*.rgb")}

    def lose_data(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def make_unavailable(self) -> None:
        self.folder.rename(self.folder.with_name("away"))

    def make_available(self) -> None:
        self.folder.with_name("away").rename(self.folder)


@contextlib.contextmanager
def redis_place(_: Path) -> Iterator[Place]:
    with running("valkey") as server:
        yield RedisPlace(server)


@contextlib.contextmanager
def folder_place(folder: Path) -> Iterator[Place]:
    yield FolderPlace(folder / "images")


PLACES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Place]]] = {
    "redis": redis_place,
    "folder": folder_place,
}
