"""The bundle for a GPU machine without a network contains all packages and is small enough."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.record import ROOT
from tests.machine_speed import scaled

TOOL = ROOT / "tools" / "gpu_bundle.sh"
MAX_BYTES = 64 << 20
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
UNREACHABLE = ("Could not find a version", "Connection", "Temporary failure", "HTTP error")


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool with this interpreter. Skip the test if the package index cannot be reached."""
    done = subprocess.run(
        ["sh", str(TOOL), *arguments],
        env={"PYTHON_BIN": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and any(text in done.stderr for text in UNREACHABLE):
        pytest.skip(f"Packages cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    return done


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "gpu"
    done = build(str(folder), VERSION, "13.0")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.e2e
@pytest.mark.timeout(scaled(120))
def test_a_bundle_is_small_and_has_one_cuda_library_of_bitsandbytes(bundle: Path) -> None:
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    (wheel,) = bundle.glob("wheels/bitsandbytes-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        libraries = {Path(name).name for name in archive.namelist() if name.endswith(".so")}
        (record,) = (name for name in archive.namelist() if name.endswith("/RECORD"))
        recorded = set(re.findall(r"/(\w+\.so),", archive.read(record).decode()))
    assert libraries == recorded == {"libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so"}


@pytest.mark.e2e
@pytest.mark.timeout(scaled(120))
def test_the_packages_and_the_source_code_can_be_imported_without_a_network(
    bundle: Path, tmp_path: Path
) -> None:
    """The packages are installed like in run.sh, and imported without those of this environment."""
    wheels = map(str, bundle.glob("wheels/*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(tmp_path), *wheels], check=True, capture_output=True)
    source = bundle / "src"
    folders = [tmp_path, source, *(source / name for name in ("wire", "server", "worker", "client"))]
    # All of these can be imported without the packages that the GPU machine has, such as torch and Pillow.
    program = (
        "import bench.gpu.session, llava_cli.app, llava_wire.redis.connection as own\n"
        "import fastapi, httpcore2, hiredis, llguidance, multipart, prometheus_client, psutil\n"
        "import pytest_timeout, uvicorn, uvloop\n"
        "from llava_cli.up import redis_process\n"
        "print(redis_process._bundled_binary(), own.__file__)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-W",
            "ignore",
            "-c",
            f"import sys; sys.path += {[*map(str, folders)]}; {program}",
        ],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(str(folder) in done.stdout for folder in (tmp_path, source))


@pytest.mark.e2e
@pytest.mark.timeout(scaled(120))
def test_an_unsupported_version_of_cuda_is_reported_with_the_supported_ones(tmp_path: Path) -> None:
    done = build(str(tmp_path / "gpu"), VERSION, "9.1")
    assert done.returncode == 1
    assert "bitsandbytes has no library libbitsandbytes_cuda91.so. It supports these versions" in done.stderr
    assert not (tmp_path / "gpu").exists()


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    done = build(str(tmp_path))
    assert done.returncode == 1 and "already exists. Choose a different folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_the_usage_is_printed() -> None:
    done = build()
    assert done.returncode == 2 and "sh tools/gpu_bundle.sh FOLDER [PYTHON [CUDA]]" in done.stderr
