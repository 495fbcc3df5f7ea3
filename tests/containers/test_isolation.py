"""The containers of docker-compose.yml have no more access than they need.

Each restriction is tested with a command that succeeds where access is intended.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator

import pytest

from tests.containers.deployment import PROJECT, Deployment, Images
from tests.containers.podman import Container, podman, run_python

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

LOG = logging.getLogger("tests.containers")
CONNECT = "import socket; socket.create_connection(({host!r}, {port}), timeout=3); print('connected')"
SECRETS = {
    "redis": {"admin_password", "users.acl"},
    "server": {"redis_url"},
    "worker": {"redis_url"},
}


@pytest.fixture
def outside() -> Iterator[tuple[str, int]]:
    """The address of a port outside all container networks, on a network interface of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect(("192.0.2.1", 9))  # selects the interface of the default route; sends nothing
        address = route.getsockname()[0]
    with socket.create_server((address, 0)) as listener:
        yield address, listener.getsockname()[1]


def connects(container: Container, host: str, port: int) -> bool:
    """Return whether a program in the container can connect to a port."""
    done = container.execute("python", "-c", CONNECT.format(host=host, port=port))
    assert done.returncode in (0, 1), done.stderr
    return "connected" in done.stdout


def connects_from(network: str, images: Images, host: str, port: int) -> bool:
    """Return whether a container that is connected only to ``network`` can connect to a port."""
    script = CONNECT.format(host=host, port=port)
    done = run_python(images.server, f"{PROJECT}_{network}", script)
    assert done.returncode in (0, 1), done.stderr
    return "connected" in done.stdout


def test_the_images_are_small_and_have_labels(images: Images) -> None:
    for image, limit_mb in ((images.server, 250), (images.worker, 900)):
        (details,) = json.loads(podman("image", "inspect", image))
        assert details["Size"] < limit_mb * 1e6
        assert details["Labels"]["org.opencontainers.image.version"] == image.split(":")[-1]
        assert len(details["Labels"]["org.opencontainers.image.revision"]) == 40
        LOG.info("%s: %.0f MB", image, details["Size"] / 1e6)


def test_every_container_is_unprivileged_and_its_files_are_read_only(project: Deployment) -> None:
    for container in (project.redis, project.server, *project.workers):
        status = container.read("cat", "/proc/self/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split()[0] in ("999", "10001")
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
        assert fields["NoNewPrivs"] == "1"
        for path in ("/new", "/etc/new", "/opt/llava/new", "/usr/bin/new"):
            assert container.execute("touch", path).returncode != 0
        mounts = container.read("cat", "/proc/mounts").splitlines()
        (root,) = [mount.split() for mount in mounts if mount.split()[1] == "/"]
        assert "ro" in root[3].split(",")
        assert container.execute("touch", "/tmp/new").returncode == 0
        assert container.execute("rm", "/tmp/new").returncode == 0
    LOG.info("all containers run without root and capabilities, on read-only file systems")


def test_every_container_has_only_its_own_secrets(project: Deployment) -> None:
    services = {"redis": project.redis, "server": project.server, "worker": project.workers[0]}
    found = {name: set(each.read("ls", "/run/secrets").split()) for name, each in services.items()}
    assert found == SECRETS
    urls = {services[name].read("cat", "/run/secrets/redis_url") for name in ("server", "worker")}
    assert len(urls) == 2


def test_a_worker_can_connect_only_to_the_queue(project: Deployment, outside: tuple[str, int]) -> None:
    (worker, *_), server = project.workers, project.server
    assert connects(server, *outside)
    assert not connects(worker, *outside)
    assert connects(worker, "redis", 6379)
    # A literal address requires no DNS, so the network itself is tested.
    error = worker.execute("python", "-c", CONNECT.format(host="192.0.2.1", port=443)).stderr
    assert "Network is unreachable" in error
    LOG.info("a worker can connect to the queue, but not to addresses outside")


def test_the_admin_port_is_reachable_only_on_the_operators_network(
    project: Deployment, images: Images
) -> None:
    server = project.server
    addresses = {name: server.address(f"{PROJECT}_{name}") for name in ("front", "back", "operators")}
    assert connects_from("operators", images, "server-admin", 9000)
    assert connects_from("front", images, "server", 8000)
    assert not connects_from("front", images, "server-admin", 9000)
    for address in addresses.values():
        assert not connects_from("front", images, address, 9000), f"{address}:9000 is reachable"
        assert not connects(project.workers[0], address, 9000), f"{address}:9000 is reachable"
    assert connects(project.workers[0], addresses["back"], 8000)
    LOG.info("the admin port is reachable only on the operators network")


def test_redis_is_not_reachable_from_the_front_network(project: Deployment, images: Images) -> None:
    address = project.redis.address(f"{PROJECT}_back")
    assert connects_from("back", images, address, 6379)
    assert not connects_from("front", images, address, 6379)
