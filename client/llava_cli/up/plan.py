"""The processes that ``llava-serve up`` runs, derived from its options before any process starts."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llava_client.loopback import is_loopback

from llava_cli.up.child_process import Program
from llava_cli.up.gpus import Gpu

__all__ = ["LaunchPlan"]

# Long enough for a short response to finish, but short enough that a developer does not mind waiting for a
# local server to stop.
_DRAIN_S = 5
_WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """The processes that one ``up`` command runs. If ``gpus`` is not empty, each GPU gets one worker.

    ``generated_key`` is the API key generated for this run. It is None if no key is required or if keys are
    already configured. ``demo_socket`` is the socket through which the server can have workers killed.
    """

    model: str
    served_model_name: str | None
    num_workers: int
    precision: str
    device: str
    host: str
    port: int
    gpus: tuple[Gpu, ...] = ()
    generated_key: str | None = field(default=None, repr=False)
    demo_socket: Path | None = None

    @staticmethod
    def generate_key(host: str, environment: Mapping[str, str]) -> str | None:
        """Return a new API key, or None if ``host`` is a loopback address or keys are configured."""
        return None if is_loopback(host) or _has_keys(environment) else f"lv-{secrets.token_urlsafe(24)}"

    @property
    def base_url(self) -> str:
        """The URL at which this machine can reach the server."""
        host = _WILDCARD_HOSTS.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def server(self, redis_url: str) -> Program:
        """Return the HTTP server program."""
        command = _python("llava_server", "--host", self.host, "--port", str(self.port))
        environment = _environment(redis_url)
        if self.generated_key:
            environment["LLAVA_API_KEYS"] = self.generated_key
        elif is_loopback(self.host) and not _has_keys(environment):
            environment.setdefault("LLAVA_AUTH", "false")
        if self.demo_socket:
            environment["LLAVA_DEMO_SOCKET"] = str(self.demo_socket)
        environment["LLAVA_DRAIN_TIMEOUT_S"] = str(_DRAIN_S)
        return Program("server", command, environment, stop_grace_s=_DRAIN_S + 10.0)

    @property
    def worker_command(self) -> tuple[str, ...]:
        """The command that runs one worker. It reads the Redis URL from the environment."""
        flags = ["--model", self.model, "--precision", self.precision, "--device", self.device]
        if self.served_model_name:
            flags += ["--served-model-name", self.served_model_name]
        return _python("llava_worker", *flags)

    def workers(self, redis_url: str) -> list[Program]:
        """Return the worker programs. The CPU cores are divided among them to avoid contention."""
        environment = _environment(redis_url)
        # huggingface_hub shows the progress of downloads only on terminals, unless this variable is set.
        environment.setdefault("TQDM_POSITION", "-1")
        if self.num_workers > 1 and "LLAVA_THREADS" not in environment:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.num_workers)))
        command = self.worker_command
        if self.gpus:  # each worker sees only its own GPU, as cuda:0
            return [
                Program(f"worker-{i + 1}", command, {**environment, **gpu.environment}, is_worker=True)
                for i, gpu in enumerate(self.gpus)
            ]
        return [
            Program(f"worker-{i + 1}", command, environment, is_worker=True) for i in range(self.num_workers)
        ]


def _has_keys(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("LLAVA_API_KEYS") or environment.get("LLAVA_API_KEYS_FILE"))


def _python(module: str, *flags: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *flags)


def _environment(redis_url: str) -> dict[str, str]:
    """Return the environment for a child. It includes the Redis URL, which may contain a password."""
    # Disable output buffering, because a child that crashes would otherwise lose its last output lines.
    environment = {**os.environ, "LLAVA_REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1"}
    environment.pop("LLAVA_REDIS_URL_FILE", None)  # the programs reject an environment that sets both
    return environment
