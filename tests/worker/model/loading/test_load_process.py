"""Loading a checkpoint in a separate process: peak memory, behavior when killed, and progress."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision

from tests.worker.checkpoints import write_checkpoint
from tests.worker.model.load_model import load_model

LOADER = textwrap.dedent("""
    import sys
    from pathlib import Path
    import torch
    from llava_worker.model.config.model_config import read_config, read_image_config
    from llava_worker.model.llava import Llava
    from llava_worker.model.loading.weights import load_weights
    from llava_worker.model.quantization.precision import choose_precision

    def peak():
        # getrusage is not used, because it includes the peak of the parent process.
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        return int(status["VmHWM"].split()[0]) * 1024

    def wait_halfway(done, total, num_tensors):
        if sys.argv[3] == "wait" and done > total / 2:
            print("half", flush=True)
            sys.stdin.read()

    torch.set_num_threads(1)
    folder, cpu = Path(sys.argv[1]), torch.device("cpu")
    precision = choose_precision(sys.argv[2], cpu)
    before = peak()
    model = Llava(read_config(folder), read_image_config(folder), precision=precision, device=cpu)
    load_weights(model, folder, on_progress=wait_halfway)
    print(peak() - before - sum(parameter.nbytes for parameter in model.parameters()), flush=True)
""")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 300 MB checkpoint in fp32."""
    folder = tmp_path_factory.mktemp("large")
    write_checkpoint(
        folder,
        text={
            "vocab_size": 8000,
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
            "initializer_range": 0.02,
        },
    )
    return folder


@pytest.mark.e2e
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_loading_needs_little_more_memory_than_the_weights(large: Path, precision: str) -> None:
    """Each chunk takes 8 MiB in fp32, plus its converted copies. All weights together take 57 to 156 MiB."""
    command = [sys.executable, "-c", LOADER, str(large), precision, "run"]

    done = subprocess.run(command, check=True, capture_output=True, text=True)

    assert int(done.stdout) < 48 << 20  # typically 15 to 20 MiB


@pytest.mark.e2e
def test_a_load_that_is_killed_halfway_leaves_no_files(large: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in large.iterdir()}
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # compiled kernels are stored there
    process = subprocess.Popen(
        [sys.executable, "-c", LOADER, str(large), "bf16", "wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": cache},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()

    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in large.iterdir()} == before


def test_progress_is_reported_in_bytes_and_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    cpu = torch.device("cpu")
    model = Llava(
        read_config(tmp_path),
        read_image_config(tmp_path),
        precision=choose_precision("bf16", cpu),
        device=cpu,
    )
    progress: list[tuple[int, int, int]] = []

    load_weights(model, tmp_path, on_progress=lambda *numbers: progress.append(numbers))

    dones, totals, counts = zip(*progress, strict=True)
    # The weights are fp32 in the file, and bf16 and padded in the model.
    assert set(totals) == {sum(parameter.nbytes for parameter in load_model(tmp_path).parameters())}
    assert list(dones) == sorted(set(dones)) and dones[-1] == totals[0]
    assert list(counts) == list(range(1, len(counts) + 1))
