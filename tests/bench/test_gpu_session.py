"""Tests for the stages, the deadlines and the table of the GPU session."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from bench.gpu.session import performance
from bench.gpu.session.__main__ import exit_status
from bench.gpu.session.attention_backends import ATTENTION_BACKENDS
from bench.gpu.session.ceilings import Ceilings
from bench.gpu.session.end_to_end import running
from bench.gpu.session.measurement import CheckFailed, Measurement, NotApplicable
from bench.gpu.session.profiler import kernel_pattern, require_counters
from bench.gpu.session.results import Results, Status
from bench.gpu.session.rows import decode_floor_s, make_row
from bench.gpu.session.setup import Setup
from bench.gpu.session.stage import run_measurements
from bench.gpu.session.table import MAX_CHARACTERS, MAX_LINES, make_table
from bench.record import ROOT
from bench.serving.target import Target
from tests.machine_speed import scaled
from tests.waiting import wait_until

STAGES = ["ceilings", "kernels", "model", "gpu_tests", "performance", "end_to_end", "profiler"]
SESSION = [sys.executable, "-m", "bench.gpu.session"]


@pytest.mark.exhaustive
@pytest.mark.e2e
@pytest.mark.timeout(scaled(240))
def test_a_rehearsal_on_a_cpu_runs_all_stages_without_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*SESSION, "--out", str(out), "--rehearse", "--budget-s", str(scaled(200))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + (out / "session.log").read_text("utf-8", "replace")[-5000:]
    results = Results(out)
    for stage in STAGES:
        assert results.ended(stage), stage
        assert not results.unfinished(stage)
    rows = {line.values["row"] for line in results.lines() if "row" in line.values}
    assert rows >= {
        "fp32 decode step, 1 stream",
        "int8 decode step, 2 streams",
        "fp32, int8 KV cache decode step, 1 stream",
        "attention, Triton, 1 x 1 tokens",
        "transformers decode step, 1 stream",
        "vision tower, 16 images, as served",
        "HTTP, time per token, 2 streams",
        "HTTP, time per token, 1 stream, 2 GPUs",
    }
    table = (out / "table.txt").read_text("utf-8")
    assert table in done.stdout
    assert len(done.stdout) <= MAX_CHARACTERS and len(table.splitlines()) <= MAX_LINES
    assert len(list(out.iterdir())) <= 8


@pytest.mark.parametrize("is_rehearsal", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_the_measurements_of_a_stage_have_unique_names(
    stage: str, is_rehearsal: bool, tmp_path: Path
) -> None:
    module = importlib.import_module(f"bench.gpu.session.{stage}")
    names = [measurement.name for measurement in module.measurements(Setup(tmp_path, is_rehearsal))]
    assert names and len(names) == len(set(names))


def test_transformers_is_measured_after_the_two_most_important_precisions(tmp_path: Path) -> None:
    names = [each.name for each in performance.measurements(Setup(tmp_path, is_rehearsal=False))]
    assert names == [
        "fp16",
        "decode attention, Triton with Triton decoding",
        "decode attention, FlashAttention 3",
        "decode attention, flash-attn",
        "decode attention, torch's varlen_attn",
        "decode attention, Triton",
        "w4a16",
        "transformers generate",
        "fp8",
        "w8a8",
        "int4",
        "fp16, int8 KV cache",
        "transformers continuous batching",
    ]


@pytest.mark.e2e
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_error_message_suggests_a_rehearsal(tmp_path: Path) -> None:
    command = [*SESSION, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "requires an NVIDIA GPU, but torch found none. Use --rehearse to run it on a CPU." in done.stderr


@pytest.mark.e2e
def test_the_results_of_an_earlier_session_are_not_overwritten(tmp_path: Path) -> None:
    Results(tmp_path).add("model", "logits", "done")
    command = [*SESSION, "--out", str(tmp_path), "--rehearse"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "already exists. Choose a different folder, or delete the file." in done.stderr


def test_the_exit_status_is_1_unless_all_checks_ended_and_passed(tmp_path: Path) -> None:
    ended = {"kernels": "", "model": "", "gpu_tests": "", "performance": "out of time"}
    results = Results(tmp_path)
    assert exit_status(results, ended) == 1
    results.add("model", "logits", "done")
    assert exit_status(results, ended) == 0
    for stage in ("kernels", "model", "gpu_tests"):
        assert exit_status(results, {**ended, stage: "out of time"}) == 1
        assert exit_status(results, {name: end for name, end in ended.items() if name != stage}) == 1
    results.add("performance", "transformers", "error", message="ImportError")
    results.add("kernels", "flash-attn", "skipped", message="not installed")
    assert exit_status(results, ended) == 0
    results.add("end_to_end", "streams", "failed", message="wrong")
    assert exit_status(results, ended) == 1


@pytest.mark.parametrize("status", ["failed", "error", "not run"])
def test_the_exit_status_is_1_if_one_check_did_not_pass(tmp_path: Path, status: Status) -> None:
    ended = {"kernels": "", "model": "", "gpu_tests": ""}
    results = Results(tmp_path)
    results.add("model", "logits", "done")
    results.add("gpu_tests", "test_gpu_attention", status)
    assert exit_status(results, ended) == 1


def test_checks_without_enough_time_are_in_the_table_and_the_exit_status_is_1(tmp_path: Path) -> None:
    results, setup = Results(tmp_path), Setup(tmp_path, is_rehearsal=False)
    endings = {}
    for stage in ("kernels", "model", "gpu_tests"):
        measurements = importlib.import_module(f"bench.gpu.session.{stage}").measurements(setup)
        status = run_measurements(stage, measurements, results, time.monotonic() + 1.0, is_paced=True)
        endings[stage] = "" if status == 0 else str(status)
    table = make_table(results, STAGES, endings)

    assert {line.status for line in results.lines()} == {"not run"}
    assert exit_status(results, endings) == 1
    assert "gpu_tests: 7 not run" in table
    assert "NOT RUN gpu_tests, test_gpu_attention and 6 more: 1 s were left; the measurement needs" in table


def test_the_table_contains_the_reason_why_a_measurement_does_not_apply(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for name in ("flash-attn in fp32", "varlen_attn in fp32"):
        results.add("kernels", name, "skipped", message="It supports only 16 bits.")
    table = make_table(results, ["kernels"], {})
    assert "  SKIPPED kernels, flash-attn in fp32 and 1 more: It supports only 16 bits." in table


def test_the_triton_backends_are_rehearsed_with_the_installed_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    for candidate in (ATTENTION_BACKENDS[0], ATTENTION_BACKENDS[-1]):
        assert candidate.create(torch.float32).name.startswith("Triton")


def test_an_error_message_of_the_interpreter_is_not_a_reason_to_skip_a_measurement(tmp_path: Path) -> None:
    def measure() -> Iterator[dict[str, float]]:
        raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        yield {}

    results = Results(tmp_path)
    run_measurements("kernels", [Measurement("x", measure)], results, time.monotonic() + 60, is_paced=False)
    assert [line.status for line in results.lines()] == ["started", "error"]


@pytest.mark.e2e
@pytest.mark.timeout(scaled(120))
def test_a_terminated_session_kills_its_stage_and_prints_the_table(tmp_path: Path) -> None:
    command = [*SESSION, "--out", str(tmp_path), "--rehearse"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as session:
        wait_until(lambda: any(Results(tmp_path).lines()), "the first result", timeout_s=60)
        stages = psutil.Process(session.pid).children()
        session.terminate()
        stdout, _ = session.communicate()
    assert session.returncode == 128 + signal.SIGTERM
    assert "ceilings: " in stdout and "profiler: no results (0 s)" in stdout
    assert stages and not any(stage.is_running() for stage in stages)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, str]:
    """The results of a stage with faulty measurements, and the reason why it ended."""
    folder = tmp_path_factory.mktemp("faulty")
    program = (
        "from pathlib import Path; from bench.gpu.session.results import Results\n"
        "from bench.gpu.session.run_stage import adopt_orphans, run_stage\n"
        f"folder = Path({str(folder)!r}); adopt_orphans()\n"
        "print(run_stage('tests.bench.faulty_stage', Results(folder), is_rehearsal=True,"
        f" seconds={scaled(20)}, log=folder / 'log'))"
    )
    # In a process of its own, because a stage kills all descendants of its process.
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Results(folder), done.stdout.strip()


@pytest.mark.e2e
@pytest.mark.timeout(scaled(120))
def test_a_measurement_that_fails_crashes_or_hangs_does_not_stop_the_next_one(
    faulty: tuple[Results, str],
) -> None:
    results, _ = faulty
    endings = {line.name: (line.status, line.message) for line in results.lines() if line.status != "started"}

    crashed = (
        "error",
        "The process crashed or reached the time limit of this measurement. See session.log.",
    )
    assert endings["raises"] == ("error", "RuntimeError: an unexpected error")
    assert endings["wrong"] == ("failed", "the result is wrong")
    assert endings["unsupported"] == ("skipped", "not on this machine")
    assert endings["crashes"] == endings["hangs"] == crashed
    assert endings["succeeds"] == ("done", "")


@pytest.mark.e2e
@pytest.mark.timeout(scaled(120))
def test_at_the_deadline_of_a_stage_its_results_are_kept(faulty: tuple[Results, str]) -> None:
    results, ending = faulty
    assert ending == "out of time"
    values = results.values("faulty_stage")
    assert (values["before"], values["answer"], values["partial"]) == (1, 42, "result")
    assert results.unfinished("faulty_stage") == {"never ends"}
    assert "too late" not in {line.name for line in results.lines()}
    assert "OUT OF TIME faulty_stage, never ends" in make_table(results, ["faulty_stage"], {})


@pytest.mark.e2e
@pytest.mark.timeout(scaled(120))
def test_processes_that_a_crashed_stage_leaves_behind_are_killed(faulty: tuple[Results, str]) -> None:
    results, _ = faulty
    orphan = results.values("faulty_stage")["orphan"]
    assert not psutil.pid_exists(orphan) or "sleep" not in psutil.Process(orphan).name()


def test_a_line_that_was_not_written_completely_is_ignored(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add("model", "logits", "done")
    with results.path.open("a", encoding="utf-8") as file:
        file.write('{"stage": "model", "name": "gre')
    assert [line.name for line in results.lines()] == ["logits"]


def test_a_table_with_hundreds_of_results_is_short(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for number in range(100):
        results.add("kernels", f"check {number}", "failed", message="x" * 500)
        row = make_row(f"decode step {number}" * 20, 0.001, 0.0005)
        results.add("performance", "fp16", "value", values=row)
    table = make_table(results, STAGES, {"kernels": "out of time"})

    assert len(table.splitlines()) <= MAX_LINES and len(table) <= MAX_CHARACTERS
    assert "kernels: 100 failed (0 s); out of time" in table
    assert "and 82 more in results.jsonl" in table
    assert "more rows in results.jsonl" in table.splitlines()[-1]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (make_row("decode", 0.003, 0.0025, ratio=1.3), "3.000 ms    2.500 ms    1.20  ok (target 3.250 ms)"),
        (
            make_row("decode", 0.004, 0.0025, ratio=1.3),
            "4.000 ms    2.500 ms    1.60  MISSED (target 3.250 ms)",
        ),
        (
            make_row("decode", 0.004, None, limit_s=0.005),
            "4.000 ms           -       -  ok (target 5.000 ms)",
        ),
        (make_row("decode", 0.004, None, ratio=1.3), "4.000 ms           -       -  -"),
        (make_row("decode", 12.0, 10.0), "12.00 s     10.00 s    1.20  -"),
    ],
)
def test_a_row_contains_the_ratio_to_the_floor_and_a_verdict(
    tmp_path: Path, row: dict[str, float], expected: str
) -> None:
    results = Results(tmp_path)
    results.add("performance", "fp16", "value", values=row)
    assert make_table(results, [], {}).splitlines()[-1].endswith(f" {expected}")


def test_rows_with_a_target_are_not_omitted_from_a_long_table(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for number in range(100):
        results.add("performance", "fp16", "value", values=make_row(f"step {number}", 0.001, None))
    results.add("end_to_end", "x", "value", values=make_row("HTTP", 0.001, None, limit_s=0.002))
    lines = make_table(results, STAGES, {}).splitlines()
    assert len(lines) == MAX_LINES
    assert lines[-2].startswith("HTTP ") and lines[-3].startswith("step 49 ")
    assert lines[-1] == "and 50 more rows in results.jsonl"


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("NVIDIA H200", {"fp16": 3.6e-3, "fp8": 2.2e-3, "w8a8": 2.2e-3, "w4a16": 1.6e-3, "int4": None}),
        ("NVIDIA L4", dict.fromkeys(("fp16", "fp8", "w8a8", "w4a16", "int4"))),
    ],
)
def test_the_targets_of_an_h200_are_durations_and_those_of_other_gpus_multiples_of_the_floor(
    tmp_path: Path, gpu: str, expected: dict[str, float | None]
) -> None:
    setup = Setup(tmp_path, is_rehearsal=False)
    setup.results.add("ceilings", "machine", "value", values={"gpu": gpu})
    for precision, limit_s in expected.items():
        ratio, actual = performance.decode_target(setup, performance.Case(precision), 1)
        assert actual == limit_s and ratio is not None
    ratio, actual = performance.decode_target(setup, performance.Case("fp16"), 128)
    assert actual == (14e-3 if "H200" in gpu else None) and ratio is not None


def test_floors_use_the_measured_rates(tmp_path: Path) -> None:
    """At 4.3 TB/s, LLaVA-1.5-7B reads its weights in 3.1 ms, or in 0.8 ms if the layers have 4 bits."""
    results, shape = Results(tmp_path), Setup(tmp_path, is_rehearsal=False).shape
    rates = {"read_bytes_per_s": 4.3e12, "copy_bytes_per_s": 4.0e12, "fp16_operations_per_s": 780e12}
    results.add("ceilings", "memory", "value", values=rates)
    ceilings = Ceilings.read(results)

    floors = [
        decode_floor_s(shape, ceilings, name, num_rows=rows, context=context)
        for name, rows, context in (("fp16", 1, 0), ("w4a16", 1, 0), ("fp16", 128, 640), ("fp8", 1, 0))
    ]
    assert floors == [
        pytest.approx(3.07e-3, rel=0.01),
        pytest.approx(0.81e-3, rel=0.01),
        pytest.approx(13.06e-3, rel=0.01),
        None,  # the rate of products in fp8 is unknown
    ]


def test_a_floor_without_measured_rates_is_unknown(tmp_path: Path) -> None:
    ceilings = Ceilings.read(Results(tmp_path))
    assert ceilings.memory_s(1e9) is None and ceilings.matrix_s(1e9, "fp16") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paged_attention", r"regex:^paged_attention"),
        ("nvjet_hsh_64x8_64x16_4x1_v_bz_TNT", r"regex:^nvjet_hsh_64x8_64x16_4x1_v_bz_TNT"),
        ("void at::native::elementwise_kernel<4, X<a::b>>(int, Y)", r"regex:^elementwise_kernel"),
    ],
)
def test_profiled_kernels_are_found_by_their_base_name(name: str, expected: str) -> None:
    assert kernel_pattern(name) == expected


@pytest.mark.parametrize(
    ("status", "output", "error", "message"),
    [
        (
            1,
            "==ERROR== ERR_NVGPUCTRPERM - The user does not have",
            NotApplicable,
            "does not permit this user",
        ),
        (1, "==ERROR== An unknown option", RuntimeError, "ncu exited with status 1: ==ERROR== An unknown"),
        (0, "==WARNING== No kernels were profiled.", RuntimeError, "ncu found no launch of the kernel"),
    ],
)
def test_an_output_of_ncu_without_counters_is_an_error_or_a_reason_to_skip(
    status: int, output: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        require_counters(status, output)


def test_a_server_that_does_not_start_is_a_failed_check(tmp_path: Path) -> None:
    target = Target(
        name="x", title="x", bits=16, command=lambda port: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    with pytest.raises(CheckFailed, match="exited with status 3"), running(target, logs=tmp_path):
        pass
