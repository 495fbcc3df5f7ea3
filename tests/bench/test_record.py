"""Tests for benchmark records, hardware limits, the results table and the servers to benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.record import RESULTS, ROOT, command_line, commit_of, make_record, versions, write_record
from bench.serving.ceilings import Ceilings
from bench.serving.growth_plot import growth_table, plot_growth
from bench.serving.plot import plot_serving
from bench.serving.roofline import limits
from bench.serving.served_model import ServedModel
from bench.serving.table import serving_table, shares
from bench.serving.target import Target, Unavailable, run_target
from bench.serving.targets import all_targets
from bench.serving.workloads import CONTEXTS, PROMPT_TOKENS, STREAMS, comparison, growth
from bench.shape import LLAVA_1_5_7B, LLAVA_1_5_SMALL, Shape

MACHINE = Ceilings(read_bytes_per_s=31e9, bf16_per_s=400e9, int8_per_s=700e9, num_threads=2)
LOAD: dict[str, Any] = {"prompt_tokens": 613, "common_tokens": 0, "output_tokens": 32, "num_at_once": 8}


def test_a_record_includes_date_command_commit_machine_and_versions(tmp_path: Path) -> None:
    path = write_record("one", {"ttft_s": 1.5}, settings={"n": 3}, folder=tmp_path / "new")
    record = json.loads(path.read_text())
    assert path.name == "one.json"
    assert list(record) == [
        "name", "date", "command", "commit", "machine", "versions", "settings", "results",
    ]  # fmt: skip
    assert (record["results"], record["settings"]) == ({"ttft_s": 1.5}, {"n": 3})
    assert record["machine"]["num_cores"] >= 1
    assert record["machine"]["memory_bytes"] > 1 << 28
    assert record["date"].endswith("+00:00")


def test_a_record_contains_no_local_path() -> None:
    assert str(ROOT) not in json.dumps(make_record("one", {}))


def test_the_command_line_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/x/bin/python", "-m", "bench", f"{ROOT}/bench/work"])
    assert command_line() == "python -m bench bench/work"


def test_versions_include_only_installed_packages() -> None:
    found = versions(["pytest", "no-such-package"])
    assert found["pytest"] == pytest.__version__
    assert "no-such-package" not in found


def test_the_version_of_a_package_is_that_of_the_copy_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "pytest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pytest\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert versions(["pytest"])["pytest"] == "1.0"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_a_record_names_a_commit_of_the_main_branch_because_others_may_be_rebased(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == "unknown"
    git(tmp_path, "init", "-b", "main")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    first = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert commit_of(tmp_path) == first

    git(tmp_path, "checkout", "-b", "other")
    (tmp_path / "file").touch()
    git(tmp_path, "add", "file")
    assert commit_of(tmp_path) == first + "+"
    git(tmp_path, "commit", "-m", "second")
    assert commit_of(tmp_path) == first + "+"

    git(tmp_path, "branch", "-D", "main")
    assert commit_of(tmp_path) == git(tmp_path, "rev-parse", "--short=12", "HEAD")


def recorded_commits(value: Any) -> Iterator[str]:
    """Yield the commits in a record, without "+"."""
    if isinstance(value, list):
        for each in value:
            yield from recorded_commits(each)
    if isinstance(value, dict):
        yield from (each.rstrip("+") for name, each in value.items() if name.endswith("commit"))
        yield from recorded_commits(list(value.values()))


def test_all_records_name_commits_that_exist() -> None:
    if not (ROOT / ".git").exists() or git(ROOT, "rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("this checkout has no history")
    history = {commit[:12] for commit in git(ROOT, "rev-list", "HEAD").split()}
    records = {path: json.loads(path.read_text()) for path in RESULTS.rglob("*.json")}
    absent = {
        f"{path.relative_to(ROOT)}: {commit}"
        for path, record in records.items()
        for commit in recorded_commits(record)
        if commit not in history
    }
    assert len(records) > 20
    assert not absent


def test_the_limits_match_a_manual_calculation() -> None:
    """The model has 1.28e9 weights of 2 bytes each and stores 0.2 MB of keys and values per token."""
    found = limits(LLAVA_1_5_SMALL, MACHINE, bits=16, **LOAD)
    assert found.tpot_s == pytest.approx((1.28e9 * 2 + 629 * 0.197e6) / 31e9, rel=0.01)
    assert found.ttft_new_s == pytest.approx(4.8, rel=0.05)
    step_s = (1.28e9 * 2 + 8 * 629 * 0.197e6) / 31e9  # weights, and KV of 8 sequences
    assert found.new_tokens_per_s == pytest.approx(8 * 32 / (8 * found.ttft_new_s + 31 * step_s), rel=0.005)


def test_narrower_weights_and_a_shared_image_improve_the_limits() -> None:
    wide, narrow = (limits(LLAVA_1_5_SMALL, MACHINE, bits=bits, **LOAD) for bits in (16, 4))
    assert narrow.tpot_s < wide.tpot_s / 2
    assert narrow.ttft_new_s < wide.ttft_new_s
    assert wide.same_tokens_per_s > 2 * wide.new_tokens_per_s


def test_the_common_prefix_is_not_computed_again() -> None:
    cold, warm = (limits(LLAVA_1_5_SMALL, MACHINE, bits=16, **{**LOAD, "common_tokens": n}) for n in (0, 30))
    attention = 4 * 24 * 2048 * (613**2 - 583**2) / 2  # causal scores and weighted sums
    saved = (30 * 2 * 1.21e9 + attention) / 400e9
    assert cold.ttft_new_s - warm.ttft_new_s == pytest.approx(saved, rel=0.01)
    assert warm.tpot_s == cold.tpot_s


def test_the_higher_of_two_measured_rates_is_the_peak_rate() -> None:
    other = replace(MACHINE, read_bytes_per_s=40e9, int8_per_s=600e9)
    assert MACHINE.combined(other) == other.combined(MACHINE) == replace(MACHINE, read_bytes_per_s=40e9)


def test_a_quick_workload_is_a_smaller_version() -> None:
    for workload in comparison().values():
        quick = workload.quick().plan
        assert quick.images == workload.plan.images
        assert (quick.num_requests or 99) * quick.num_turns <= 4
        assert quick.max_tokens < workload.plan.max_tokens


def test_a_longer_context_adds_words_to_each_question() -> None:
    short, long = comparison(), comparison(2000)
    assert list(short) == list(long) == ["new", "new8", "same8", "text", "talk"]
    added = {long[name].plan.num_words - short[name].plan.num_words for name in short}
    assert added == {2000 - PROMPT_TOKENS}


def test_growth_has_one_workload_per_prompt_length_and_per_number_of_requests() -> None:
    workloads = growth()
    assert len(workloads) == len(CONTEXTS) + len(STREAMS)
    assert workloads["context-2000"].plan.concurrency == 1
    assert workloads["streams-8"].plan.concurrency == workloads["streams-8"].plan.num_requests == 8


def summary(**changes: Any) -> dict[str, Any]:
    times = {"p50": 0.5}
    defaults = {"num_complete": 3, "ttft_s": times, "tpot_s": times, "output_tokens_per_s": 9.0, "errors": {}}
    return {**defaults, **changes}


def test_the_table_has_values_and_limits_and_lists_missing_servers(tmp_path: Path) -> None:
    bounds = limits(LLAVA_1_5_SMALL, MACHINE, bits=16, **LOAD).__dict__
    served = {"new": summary(), "new8": summary(errors={"timeout": 2}), "same8": summary(num_complete=0)}
    starts = [{"first_response_s": 7.2}, {"first_response_s": 3.1}]
    memory = {moment: {"rss_bytes": 5e9, "pss_bytes": 4e9} for moment in ("loaded", "used")}
    more = {"starts": starts, "memory": memory}
    results = {"title": "other server", "bits": 16, "limits": bounds, "workloads": served, **more}
    write_record("other", results, folder=tmp_path)
    write_record("gone", {"title": "missing server", "why_not": "No wheel."}, folder=tmp_path)
    write_record("llava-serve-x", {**results, "title": "llava-serve"}, folder=tmp_path)
    head, _, first, second, *rest = serving_table(tmp_path).splitlines()
    assert head in (ROOT / "README.md").read_text("utf-8").splitlines()
    assert first.startswith("| llava-serve |")
    assert "| 0.50 s (4." in second and "| 500 ms (" in second
    assert second.endswith("| 7.2 s | 3.1 s | 4.0 GB | 4.0 GB |")
    assert "2 failed" in second
    assert second.count(" - ") >= 2  # no request in these workloads succeeded
    assert rest == ["", "- missing server: not measured. No wheel."]


def test_the_share_of_the_limit_is_1_at_the_limit_and_less_below() -> None:
    bounds = {"ttft_new_s": 0.5, "tpot_s": 0.25, "new_tokens_per_s": 18.0}
    found = shares({"limits": bounds, "workloads": {"new": summary(), "new8": summary()}})
    assert found == {"ttft_new_s": 1.0, "tpot_s": 0.5, "new_tokens_per_s": 0.5}


def test_the_plots_omit_values_and_servers_that_were_not_measured(tmp_path: Path) -> None:
    bounds = limits(LLAVA_1_5_SMALL, MACHINE, bits=16, **LOAD).__dict__
    served = {"new": summary(), f"context-{CONTEXTS[0]}": summary(), "streams-8": summary()}
    write_record("one", {"title": "one", "limits": bounds, "workloads": served}, folder=tmp_path)
    write_record("gone", {"title": "gone", "why_not": "No wheel."}, folder=tmp_path)
    for plot in (plot_serving, plot_growth):
        assert plot(tmp_path, tmp_path / "plot.png", "title").stat().st_size > 1000
    assert "| one | 0.50 | - | - | - |" in growth_table(tmp_path)
    assert "gone" not in growth_table(tmp_path)


def served(folder: Path, shape: Shape = LLAVA_1_5_SMALL) -> ServedModel:
    return ServedModel(folder=folder, shape=shape, num_at_once=8, tokens_per_request=1024)


def test_targets_have_unique_names_and_nothing_is_installed(tmp_path: Path) -> None:
    known = all_targets(served(tmp_path / "nowhere"))
    peers = {"transformers-bf16", "openvino-int4", "llama-cpp-q4_k_m", "vllm-bf16"}
    assert {"llava-serve-bf16", "llava-serve-int8", *peers} <= set(known)
    assert all(name == target.name for name, target in known.items())
    assert list(tmp_path.iterdir()) == []


def test_servers_reserve_memory_for_the_kv_cache_of_all_concurrent_requests(tmp_path: Path) -> None:
    small, large = served(tmp_path), served(tmp_path, LLAVA_1_5_7B)
    assert (small.kv_tokens, small.kv_gib, large.kv_gib) == (8192, 2, 4)
    command = all_targets(small)["llama-cpp-q8_0"].command(1)
    assert command[command.index("-c") + 1] == "8192"


def test_llava_serve_is_measured_without_speculative_decoding(tmp_path: Path) -> None:
    known = all_targets(served(tmp_path))
    targets = [target for name, target in known.items() if name.startswith("llava-serve-")]
    assert len(targets) == 4
    assert all(target.environment["LLAVA_SPECULATION"] == "off" for target in targets)


PROGRAM = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
UP = Target(
    name="test-server",
    title="test",
    bits=16,
    command=lambda port: [sys.executable, "-c", PROGRAM, str(port)],
)


def test_a_target_is_started_and_stopped() -> None:
    with run_target(UP) as server:
        assert server.ready_s > 0
        memory = server.memory()
        assert memory.rss_bytes >= memory.pss_bytes > 1 << 20
        process = server.process
    assert not process.is_running()


def test_a_target_that_exits_before_it_is_ready_is_unavailable() -> None:
    program = f"import sys; sys.exit('no weights in {ROOT}/bench')"
    broken = replace(UP, command=lambda port: [sys.executable, "-c", program])
    with pytest.raises(Unavailable, match="status 1.*: no weights in bench$"), run_target(broken):
        pass
