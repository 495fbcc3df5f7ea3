"""Fixtures: the images, a deployment of them, and an API key."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.containers.deployment import ROOT, Deployment, Images, deployment
from tests.containers.load import undisturbed_texts
from tests.containers.podman import attempt, podman

LOG = logging.getLogger("tests.containers")
NEXT = "localhost/llava-serve-test/{name}:next"  # the images to which a running deployment is updated


@pytest.fixture(autouse=True, scope="session")
def quiet_http() -> None:
    """Omit the requests of clients from the transcript."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def images() -> Images:
    """The images, built from the Dockerfiles. ``VALKEY_IMAGE`` replaces Valkey's image from the registry."""
    started_at = time.monotonic()
    done = subprocess.run(
        ["sh", "tools/build_images.sh"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        remedy = "If the registry cannot be reached, use tools/base_images.sh. See docs/deploy/compose.md."
        pytest.exit(f"{done.stdout[-2000:]}{done.stderr[-4000:]}\n{remedy}", returncode=1)
    LOG.info("built the images in %.0f s", time.monotonic() - started_at)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    redis = os.environ.get("VALKEY_IMAGE") or compose["x-images"]["valkey"]
    server, worker = (f"localhost/{compose['services'][name]['image']}" for name in ("server", "worker"))
    return Images(redis=redis, server=server, worker=worker)


@pytest.fixture(scope="session")
def next_images(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Images of another version, with the same programs."""
    folder = tmp_path_factory.mktemp("next")
    names = {name: NEXT.format(name=name) for name in ("server", "worker")}
    for name, tag in names.items():
        (folder / name).write_text(
            f"FROM {getattr(images, name)}\nLABEL org.opencontainers.image.version=next\n"
        )
        podman("build", "--quiet", "--tag", tag, "--file", str(folder / name), str(folder))
    yield Images(redis=images.redis, **names)
    attempt("rmi", "--force", *names.values())


@pytest.fixture(scope="session")
def project(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    started_at = time.monotonic()
    with deployment(tmp_path_factory.mktemp("deployment"), images) as project:
        LOG.info("the deployment was ready after %.0f s", time.monotonic() - started_at)
        yield project
    LOG.info("all containers, networks and volumes were removed")


@pytest.fixture(scope="session")
def api_key(project: Deployment) -> str:
    """A key that is created with the command in docs/deploy/compose.md."""
    printed = project.compose("exec", "-T", "server", "llava-serve", "keys", "create", "containers")
    return printed.split()[-1]


@pytest.fixture(scope="session")
def expected(project: Deployment, api_key: str) -> list[str]:
    """The text of each question of the load, generated while all containers are running."""
    texts = undisturbed_texts(project.url, api_key)
    # If texts of different questions were equal, the load could not detect that they are mixed up.
    assert len(set(texts)) == len(texts)
    return texts


@pytest.fixture(autouse=True)
def report(request: pytest.FixtureRequest) -> Iterator[None]:
    """Log the containers' output if a test fails."""
    num_failed = request.session.testsfailed
    yield
    if request.session.testsfailed > num_failed and "project" in request.fixturenames:
        LOG.info(request.getfixturevalue("project").logs())
