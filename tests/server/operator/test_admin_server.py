"""The server observes the end of its admin server."""

from __future__ import annotations

import socket

from llava_server.connections import ConnectionLimits
from llava_server.draining_server import DrainingServer
from llava_server.settings import Settings


def test_a_crash_of_the_admin_server_drains_the_server_and_is_a_failure(queue_url: str) -> None:
    settings = Settings(redis_url=queue_url, image_workers=1, drain_grace_s=0.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unusable,
    ):
        unusable.bind(("127.0.0.1", 0))
        server = DrainingServer(settings, ConnectionLimits.of(settings), unusable, print)
        server.run(sockets=[listener])
    assert server.has_served
    assert server.failure == "The admin server failed with ValueError."
