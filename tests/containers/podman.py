"""Commands of Podman, and the containers of a Compose project."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def podman(*arguments: str) -> str:
    """Run a command of Podman and return its output. Raises AssertionError if it fails."""
    done = attempt(*arguments)
    assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def attempt(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Podman that may fail."""
    return subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Container:
    """One container of a service."""

    id: str
    name: str

    @property
    def hostname(self) -> str:
        """The container's host name, with which the ID of its worker begins."""
        return self.id[:12]

    def inspect(self) -> dict[str, Any]:
        (details,) = json.loads(podman("inspect", "--type", "container", self.id))
        assert isinstance(details, dict)
        return details

    @property
    def pid(self) -> int:
        """The process ID of the container's init process on this machine. 0 if the container is stopped."""
        return int(self.inspect()["State"]["Pid"])

    @property
    def image_id(self) -> str:
        return str(self.inspect()["Image"])

    def address(self, network: str) -> str:
        """Return the container's IP address on the network with this full name."""
        return str(self.inspect()["NetworkSettings"]["Networks"][network]["IPAddress"])

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""
        return attempt("exec", self.id, *command)

    def read(self, *command: str) -> str:
        """Return the output of a command in the container. Raises AssertionError if the command fails."""
        return podman("exec", self.id, *command)

    def is_healthy(self) -> bool:
        """Run the container's health check once. Without systemd, Podman does not run it periodically."""
        return attempt("healthcheck", "run", self.id).returncode == 0

    def kill(self) -> None:
        """Kill the container from outside, like the kernel does if the container exceeds its memory limit.

        Unlike ``podman kill``, this counts as a failure, after which Podman restarts the container.
        """
        os.kill(self.pid, signal.SIGKILL)

    def signal_programs(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the container except its init process."""
        for pid in podman("top", self.id, "hpid").split()[1:]:
            if int(pid) != self.pid:
                os.kill(int(pid), number)


def containers(project: str, service: str) -> list[Container]:
    """Return the running containers of a service."""
    listed = _labeled("ps", project, "--filter", f"label=com.docker.compose.service={service}")
    return [Container(str(each["Id"]), str(each["Names"][0])) for each in listed]


def leftovers(project: str) -> list[str]:
    """Return the names of all containers, networks and volumes of a project."""
    return sorted(
        [
            *(str(each["Names"][0]) for each in _labeled("ps", project, "--all")),
            *(str(each["name"]) for each in _prefixed("network", project)),
            *(str(each["Name"]) for each in _prefixed("volume", project)),
        ]
    )


def run_python(image: str, network: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a temporary container that is connected only to ``network``."""
    return attempt(
        "run", "--rm", "--read-only", "--network", network, "--entrypoint", "python", image, "-c", script
    )


def _labeled(command: str, project: str, *options: str) -> Sequence[dict[str, Any]]:
    project_filter = ("--filter", f"label=com.docker.compose.project={project}")
    return _parsed(podman(command, *project_filter, *options, "--format", "json"))


def _prefixed(kind: str, project: str) -> Sequence[dict[str, Any]]:
    return _parsed(podman(kind, "ls", "--filter", f"name={project}_", "--format", "json"))


def _parsed(output: str) -> Sequence[dict[str, Any]]:
    listed = json.loads(output or "[]")
    assert isinstance(listed, list)
    return listed
