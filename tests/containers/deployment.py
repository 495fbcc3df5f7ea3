"""A deployment of docker-compose.yml in a folder of its own, as docs/deploy/compose.md describes it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import yaml

from tests.containers.podman import Container, containers, leftovers, podman
from tests.processes import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROJECT = "llava-serve-test"
ADMIN = "http://server-admin:9000"
LOG = logging.getLogger("tests.containers")
# In fp32, the bundled model generates the same tokens at every batch size.
SETTINGS = {"LLAVA_PRECISION": "fp32", "LLAVA_THREADS": "1"}
START_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Images:
    """The names of the images of the three services."""

    redis: str
    server: str
    worker: str

    def overlay(self) -> str:
        """Return a Compose file that replaces the images of docker-compose.yml."""
        services = {name: {"image": image} for name, image in vars(self).items()}
        return str(yaml.safe_dump({"services": services}))


class Deployment:
    """A running project of Compose with its own secrets, settings, networks and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def prepare(self, images: Images) -> None:
        """Follow the quick start of docs/deploy/compose.md up to the start of the containers."""
        (self._folder / "deploy").mkdir()
        shutil.copy(ROOT / "docker-compose.yml", self._folder)
        for name in ("create_secrets.sh", "users.acl"):
            shutil.copy(ROOT / "deploy" / name, self._folder / "deploy")
        subprocess.run(
            ["sh", "deploy/create_secrets.sh"], cwd=self._folder, check=True, stdout=subprocess.DEVNULL
        )
        settings = {**SETTINGS, "LLAVA_PORT": str(self.port)}
        (self._folder / ".env").write_text("".join(f"{name}={text}\n" for name, text in settings.items()))
        self.use(images)

    def use(self, images: Images) -> None:
        """Select the images with which ``up`` creates containers."""
        (self._folder / "overlay.yaml").write_text(images.overlay())

    def compose(self, *arguments: str) -> str:
        """Run podman-compose and return its output. Raises AssertionError if it fails."""
        files = ["-f", "docker-compose.yml", "-f", "overlay.yaml"]
        # Settings of this shell take precedence over .env, so they are removed.
        environment = {name: text for name, text in os.environ.items() if not name.startswith("LLAVA_")}
        done = subprocess.run(
            [sys.executable, "-m", "podman_compose", "--project-name", PROJECT, *files, *arguments],
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"podman-compose {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def up(self, *services: str, num_workers: int = 1) -> None:
        """Create or recreate the containers of some services, without waiting until they are healthy."""
        self.compose(
            "up", "--detach", "--no-build", "--scale", f"worker={num_workers}", "--no-deps", *services
        )

    def start(self) -> None:
        """Create all containers and wait until they are healthy."""
        self.up("redis")
        wait_until(self.redis.is_healthy, "a healthy redis", timeout_s=START_TIMEOUT_S)
        self.up("server", "worker")
        self.wait_until_ready()

    def scale(self, num_workers: int) -> None:
        """Add workers up to this number, and wait until they are healthy."""
        self.up("worker", num_workers=num_workers)
        self.wait_until_ready(num_workers)

    def wait_until_ready(self, num_workers: int = 1) -> None:
        """Wait until all containers are healthy. ``up --wait`` does this only with Podman 4.6 or newer."""
        wait_until(self.is_ready, "a ready server", timeout_s=START_TIMEOUT_S)
        wait_until(lambda: len(self.workers) >= num_workers, "the workers", timeout_s=START_TIMEOUT_S)
        for container in (self.redis, self.server, *self.workers):
            wait_until(container.is_healthy, f"a healthy {container.name}", timeout_s=START_TIMEOUT_S)

    def readiness(self) -> tuple[int, str]:
        """Return the status and the body of /readyz. The status is 0 if no connection is possible."""
        try:
            response = httpx2.get(f"{self.url}/readyz", trust_env=False, timeout=10)
        except httpx2.RequestError as error:
            return 0, str(error)
        return response.status_code, response.text

    def is_ready(self) -> bool:
        return self.readiness()[0] == 200

    def admin(self, path: str) -> str:
        """Send a request to the admin port with the command from docs/deploy/compose.md."""
        script = f"import urllib.request as http; print(http.urlopen('{ADMIN}{path}').read().decode())"
        return self.compose("exec", "-T", "server", "python", "-c", script)

    @property
    def redis(self) -> Container:
        (container,) = containers(PROJECT, "redis")
        return container

    @property
    def server(self) -> Container:
        (container,) = containers(PROJECT, "server")
        return container

    @property
    def workers(self) -> list[Container]:
        return containers(PROJECT, "worker")

    def logs(self) -> str:
        """Return the last lines of the logs of all containers."""
        running = [each for service in ("redis", "server", "worker") for each in containers(PROJECT, service)]
        return "\n".join(f"== {each.name}\n{podman('logs', '--tail', '20', each.id)}" for each in running)


@contextmanager
def deployment(folder: Path, images: Images) -> Iterator[Deployment]:
    """Deploy the images and remove all containers, networks and volumes at the end."""
    assert leftovers(PROJECT) == [], "an earlier run was interrupted; remove these first"
    project = Deployment(folder)
    project.prepare(images)
    try:
        project.start()
        yield project
    finally:
        # Added workers count as orphans, because the number of workers is not in the file.
        project.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
    assert leftovers(PROJECT) == []
