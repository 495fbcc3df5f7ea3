"""Measure one server: its startup time, its memory, and its results for each workload."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_cli.bench import Images, Plan, run_load
from llava_client.errors import LlavaError

from bench.program import wait_until_stored
from bench.record import ROOT
from bench.serving.target import RunningTarget, Target, Unavailable, run_target
from bench.serving.workloads import Workload, measure

__all__ = ["measure_running", "measure_target"]

# Time to wait once the server is ready, so that it can finish its background startup work.
_IDLE_S = 5.0
_READ_BYTES = 1 << 24
_TIMEOUT_S = 600.0
# Some servers load the weights only when they receive the first request.
_FIRST_REQUEST = Plan(num_requests=1, images=Images.NONE, num_words=8, max_tokens=2, ignore_eos=False)


def measure_target(
    target: Target, workloads: Mapping[str, Workload], *, idle_s: float = _IDLE_S
) -> dict[str, Any]:
    """Start the server twice, and measure the workloads after the second start.

    Before the first start and after the second, everything that the server stored is deleted. The weights are
    read into the page cache, so that startup times do not include disk reads. A start ends with the response
    to a short text-only request. Raises Unavailable if the server does not start or exits.
    """
    with _empty_folder(target.cache):
        with _started(target) as (_, first):
            _wait_until_stored(target)
        with _started(target) as (server, second):
            time.sleep(idle_s)
            loaded = server.memory()
            results = measure_running(server.url, target.model, workloads)
            memory = {"loaded": asdict(loaded), "used": asdict(server.memory())}
    return {"starts": [first, second], "memory": memory, "server_command": _command_line(target), **results}


def measure_running(url: str, model: str | None, workloads: Mapping[str, Workload]) -> dict[str, Any]:
    """Measure the workloads with a server that is already running.

    Raises Unavailable if the server rejects the first request.
    """
    measured: dict[str, Any] = {}
    for name, workload in workloads.items():
        print(name, end=" ", flush=True)
        if measured:
            workload = workload.with_ignore_eos(next(iter(measured.values()))["ignore_eos"])
        try:
            measured[name] = measure(url, model, workload, is_first=not measured)
        except LlavaError as error:
            raise Unavailable(f"The server did not respond to the first request: {error}") from error
    return {"workloads": measured}


@contextmanager
def _empty_folder(folder: Path | None) -> Iterator[None]:
    """Delete the folder before and after its use."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_stored(target: Target) -> None:
    """Wait until the server has stored data for its next start. Raises Unavailable after a timeout."""
    if target.cache and target.stored:
        try:
            wait_until_stored(target.cache, target.stored)
        except TimeoutError as error:
            raise Unavailable(f"The second start could not be measured: {error}.") from error


@contextmanager
def _started(target: Target) -> Iterator[tuple[RunningTarget, dict[str, float]]]:
    """Start the server, and yield it with its startup times."""
    if target.weights:
        _read_into_page_cache(target.weights)
    with run_target(target) as server:
        times = {"ready_s": server.ready_s, "first_response_s": server.ready_s + _response_s(target, server)}
        yield server, times


def _response_s(target: Target, server: RunningTarget) -> float:
    """Return the time for the response to the first request."""
    load = run_load(_FIRST_REQUEST, server.url, model=target.model, timeout_s=_TIMEOUT_S, is_warming_up=False)
    try:
        sample = asyncio.run(load).samples[0]
    except LlavaError as error:
        raise Unavailable(f"The server returned no list of models: {error}") from error
    if sample.error not in (None, "no_text"):
        raise Unavailable(f"The server did not respond to the first request: {sample.message}")
    return sample.total_s


def _read_into_page_cache(weights: Path) -> None:
    for path in sorted(weights.rglob("*")) if weights.is_dir() else [weights]:
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass


def _command_line(target: Target) -> str:
    """Return the server's environment variables and command, without local paths."""
    variables = [f"{name}={value}" for name, value in target.environment.items()]
    return " ".join([*variables, *target.command(8000)]).replace(f"{ROOT}/", "")
