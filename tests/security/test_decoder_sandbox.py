"""System calls that a compromised image decoder process can still make."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from llava_server.images import decoder_process
from llava_server.images.sandbox import _MACHINES, enter_sandbox
from llava_wire.messages.heartbeat import ImageSpec

from tests.machine_speed import scaled
from tests.server.image_files import encoded, scene
from tests.server.image_slots import decoder_pool

linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp requires Linux")

# Each call must succeed without the sandbox. Otherwise, its failure in the sandbox would prove nothing.
ATTEMPTS = """
import ctypes, errno, json, mmap, os, resource, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
attempts = {
    "open a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "list a folder": lambda: os.listdir("/"),
    "write a file": lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR),
    "stat a path": lambda: os.stat("/"),
    "open a TCP socket": lambda: socket.socket(),
    "open a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "open a datagram socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "create a socket pair": lambda: socket.socketpair(),
    "create a pipe": lambda: os.pipe(),
    "fork": lambda: os.fork() or os._exit(0),
    "signal another process": lambda: os.kill(os.getppid(), 0),
    "map executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "limit another process": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE),
    "change the user": lambda: os.setuid(os.getuid()),
    "create a memory file": lambda: os.memfd_create("x"),
    "change the working directory": lambda: os.chdir("/"),
}
if sys.argv[1] == "sandboxed":
    sys.path.append(sys.argv[2])
    from llava_server.images.sandbox import enter_sandbox
    assert enter_sandbox() is None
results = {}
for name, attempt in attempts.items():
    try:
        attempt()
    except OSError as error:
        results[name] = errno.errorcode[error.errno]
    else:
        results[name] = "ok"
allowed = mmap.mmap(-1, 1 << 20), bytearray(1 << 24), os.urandom(8), resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps(results))
"""
SOURCE = str(Path(decoder_process.__file__).parents[2])


def run_attempts(mode: str) -> dict[str, str]:
    """Return the result of each attempt: "ok" or an errno name. ``mode`` is "sandboxed" or "free"."""
    command = [sys.executable, "-I", "-c", ATTEMPTS, mode, SOURCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=scaled(60), check=True, env={})
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@linux
def test_a_sandboxed_process_cannot_make_other_system_calls() -> None:
    assert set(run_attempts("sandboxed").values()) == {"EPERM"}


@linux
def test_a_process_without_a_sandbox_can_make_all_system_calls() -> None:
    assert set(run_attempts("free").values()) == {"ok"}


@linux
def test_system_calls_of_another_architecture_kill_the_process() -> None:
    program = (
        "import ctypes, sys; sys.path.append(sys.argv[1]);"
        "from llava_server.images.sandbox import enter_sandbox; enter_sandbox();"
        "ctypes.CDLL(None).syscall(0x40000000 + 39)"  # getpid in the x32 ABI
    )
    done = subprocess.run([sys.executable, "-I", "-c", program, SOURCE], timeout=scaled(60), check=False)
    assert done.returncode == (-31 if "x86_64" in sys.implementation._multiarch else 0)  # SIGSYS


@linux
def test_a_process_of_the_pool_has_no_environment_no_files_and_a_seccomp_filter() -> None:
    async def check() -> None:
        pool = decoder_pool()
        await pool.start()
        try:
            await pool.preprocess(base64.b64encode(encoded(scene())), ImageSpec(side=28), tenant="a")
            process = Path(f"/proc/{pool.pids[0]}")
            status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
            assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
            assert (process / "environ").read_bytes() == b""
            assert sorted(fd.name for fd in (process / "fd").iterdir()) == ["0", "1", "2"]
        finally:
            await pool.aclose()

    asyncio.run(check())


def test_an_unsupported_machine_is_reported_and_not_an_error() -> None:
    assert "riscv64" in str(enter_sandbox("riscv64"))


def test_both_lists_have_the_same_system_calls() -> None:
    (_, first), (_, second) = _MACHINES.values()
    assert first.keys() == second.keys()


def test_a_missing_sandbox_is_logged_only_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; sys.path.append(sys.argv[1]); from llava_server.images import decoder_process; "
    program += "decoder_process.enter_sandbox = lambda: 'no list'; decoder_process.main()"
    monkeypatch.setattr("llava_server.images.decoder_pool._PROGRAM", program)

    async def start() -> None:
        pool = decoder_pool(2)
        await pool.start()
        await pool.aclose()

    asyncio.run(start())
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["image decoders are running without the seccomp sandbox: no list"]
