"""Command line options and hooks for all tests."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_timeout

from tests.machine_speed import SPEED, scaled

TESTS = Path(__file__).parent
# Files that take longer than 40 seconds, in descending order. If one is started last, the others wait for it.
LONG_FILES = (
    "test_clients.py",
    "test_gpu_session.py",
    "test_mixed_attack.py",
    "test_lost_keys.py",
    "test_attacks.py",
    "test_transformers_engine.py",
    "test_sentinel_and_cluster.py",
    "test_paged_attention.py",
    "test_queue_outages.py",
    "test_batch_faults.py",
)
HAS_NVIDIA_DRIVER = Path("/dev/nvidiactl").exists()

# Without a GPU, kernels run in Triton's interpreter. Triton reads this variable when it is first imported.
if not HAS_NVIDIA_DRIVER:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@functools.cache
def has_cuda_device() -> bool:
    """Return whether torch finds a CUDA device. Torch is imported only if the driver is installed."""
    if not HAS_NVIDIA_DRIVER:
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def has_docker_compose() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    return subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Tests that are collected only if the required hardware or program is available.
REQUIREMENTS: dict[Path, tuple[str, Callable[[], bool]]] = {
    TESTS / "gpu": ("torch finds no CUDA device", has_cuda_device),
    TESTS / "e2e" / "test_docker_compose.py": ("docker compose is not installed", has_docker_compose),
}

# Markers of tests that run only with the option of the same name, and what these tests do.
ON_REQUEST = {
    "evaluation": "install lmms-eval and run it, also with transformers' own model and with invalid datasets",
    "containers": "build the images, deploy docker-compose.yml with Podman and test the deployment",
    "site": "test the documentation site in dist/site",
    "wheel": "build the wheel, install it without a compiler in a new environment, and test llava-serve up",
}


@functools.cache
def not_collected() -> dict[Path, str]:
    """Return the paths whose requirements are not met, with the reason for each."""
    return {path: reason for path, (reason, is_available) in REQUIREMENTS.items() if not is_available()}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="run all seeds of random workloads, all cases of long loops and all slow variants, not a sample",
    )
    parser.addoption(
        "--api-cases",
        type=int,
        default=150,
        help="number of requests generated from the OpenAPI document",
    )
    parser.addoption(
        "--all-clients",
        action="store_true",
        help="test the server with all third-party clients instead of those that start quickly",
    )
    for marker, description in ON_REQUEST.items():
        parser.addoption(f"--{marker}", action="store_true", help=description)


def pytest_configure() -> None:
    # Shells start background jobs with SIGINT ignored, and child processes inherit this setting. SIGINT would
    # then have no effect on programs that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Authentication is off by default in tests. Tests that need it set the variable themselves.
    os.environ["LLAVA_AUTH"] = "false"


def pytest_report_header() -> list[str]:
    missing = [
        f"not collected: {path.relative_to(TESTS.parent)} ({why})" for path, why in not_collected().items()
    ]
    return [f"timeouts: scaled by {SPEED.factor:.1f} to match the machine's speed", *missing]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path in not_collected() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that must not run, and begin with the files that take longest.

    ``pytest_ignore_collect`` is not called for paths on the command line. If a long file ran last, one
    process would run it while the others had nothing to do.
    """
    markers = [*ON_REQUEST, "exhaustive"]
    not_requested = [marker for marker in markers if not config.getoption(f"--{marker}")]
    excluded = [
        item
        for item in items
        if not not_collected().keys().isdisjoint((item.path, *item.path.parents))
        or any(item.get_closest_marker(marker) for marker in not_requested)
    ]
    if excluded:
        config.hook.pytest_deselected(items=excluded)
        items[:] = [item for item in items if item not in excluded]
    items.sort(key=_position)


def _position(item: pytest.Item) -> int:
    """Return the position of the item's file in the order in which files are started."""
    name = item.path.name
    return LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection, which takes most of a second with them."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # triton reports modules that are never collected as leaks


def pytest_runtest_setup() -> None:
    SPEED.refresh()


def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool:
    """Scale pytest-timeout's timeout, whether it is set in the configuration or by a marker."""
    is_set: bool = pytest_timeout.pytest_timeout_set_timer(
        item, settings._replace(timeout=scaled(settings.timeout))
    )
    return is_set
