"""The wheel, installed without a compiler, serves README.md's request.

The installation follows docs/get-started/installation.md.

The kernels in the wheel are used, and no program is needed that a minimal system does not have.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.docs.code_blocks import code_blocks
from tests.processes import free_port
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]

LOG = logging.getLogger("tests.wheel")
ROOT = Path(__file__).parents[2]
SERVER = "http://127.0.0.1:8000"  # in README.md
PROGRAMS = ("sh", "base64", "cat", "curl", "tr")  # the shell, and the programs in README.md
COMPILERS = ("c++", "cc", "clang", "clang++", "g++", "gcc")


class Environment:
    """A virtual environment that contains the wheel, in which only a few other programs are found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        programs = folder / "programs"
        programs.mkdir()
        for name in PROGRAMS:
            path = shutil.which(name)
            assert path, f"{name} is not installed"
            (programs / name).symlink_to(path)
        path = os.pathsep.join((str(folder / "venv" / "bin"), str(programs)))
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.variables = pip | {"PATH": path, "HOME": str(folder)}
        assert not [name for name in COMPILERS if shutil.which(name, path=path)]

    def run(self, *command: str, **variables: str) -> str:
        """Return the output of a program. Raises AssertionError if it fails."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def install(self, wheel: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", self._folder / "venv"], check=True)
        self.run("python", "-m", "pip", "install", "-q", f"{wheel}[all]", "-c", "constraints.txt")

    def doctor(self, redis_url: str) -> str:
        return self.run("llava-serve", "doctor", LLAVA_REDIS_URL=redis_url, COLUMNS="500")

    @contextmanager
    def up(self, *options: str) -> Iterator[tuple[str, str]]:
        """Run ``llava-serve up``. Yield its URL, and its output until the server is ready."""
        url = f"http://127.0.0.1:{free_port()}"
        log = self._folder / "up.log"
        program = shutil.which("llava-serve", path=self.variables["PATH"])
        assert program
        started_at = time.monotonic()
        with log.open("w") as sink:
            command = [program, "up", "--port", url.rpartition(":")[2], *options]
            process = subprocess.Popen(
                command, cwd=self._folder, env=self.variables, stdout=sink, stderr=sink
            )
        try:
            wait_until(lambda: "llava-serve is up" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            LOG.info("%s was ready after %.1f s", " ".join(command[1:]), time.monotonic() - started_at)
            yield url, log.read_text()
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("wheel")
    started_at = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", str(folder), str(ROOT)],
        env=os.environ | {"LLAVA_BUILD_KERNELS": "required"},
        check=True,
    )
    LOG.info("built the source distribution and the wheel in %.0f s", time.monotonic() - started_at)
    (wheel,) = folder.glob("*.whl")
    environment = Environment(folder)
    started_at = time.monotonic()
    environment.install(wheel)
    LOG.info("installed %s in %.0f s", wheel.name, time.monotonic() - started_at)
    return environment


def request_in_readme(url: str) -> str:
    (block,) = [
        block for block in code_blocks(ROOT / "README.md", ROOT) if "/v1/chat/completions" in block.code
    ]
    assert SERVER in block.code
    return block.code.replace(SERVER, url)


def test_the_request_in_the_readme_gets_the_correct_response(environment: Environment) -> None:
    with environment.up() as (url, _):
        started_at = time.monotonic()
        response = json.loads(environment.run("sh", "-c", request_in_readme(url)))
        LOG.info("response after %.2f s", time.monotonic() - started_at)
        assert response["choices"][0]["message"]["content"] == "The circle is green."


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_the_kernels_in_the_wheel_are_used(environment: Environment, precision: str) -> None:
    with (
        running_redis() as redis_url,
        environment.up("--precision", precision, "--redis-url", redis_url) as (url, output),
    ):
        assert "kernels     shipped" in output
        readiness = httpx2.get(f"{url}/readyz").json()
        assert (readiness["kernels"], readiness["warnings"]) == ({"tiny-llava": ["shipped"]}, [])
        assert "uses kernels: shipped" in environment.doctor(redis_url)


def test_a_fallback_to_slower_kernels_is_reported(environment: Environment) -> None:
    package = environment.run("python", "-c", "import llava_worker; print(llava_worker.__path__[0])")
    libraries = list(Path(package.strip(), "model", "cpu").glob("*.so"))
    assert libraries
    for path in libraries:
        path.rename(path.with_suffix(".hidden"))
    try:
        with (
            running_redis() as redis_url,
            environment.up("--precision", "int8", "--redis-url", redis_url) as (url, output),
        ):
            assert "kernels     torch" in output
            assert httpx2.get(f"{url}/readyz").json()["warnings"]
            assert "uses torch kernels" in environment.doctor(redis_url)
    finally:
        for path in libraries:
            path.with_suffix(".hidden").rename(path)
