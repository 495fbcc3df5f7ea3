"""The load generator: pacing, generated images, statistics, progress and plot."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event, Lock

import numpy as np
import pytest
from llava_cli.bench import Images, Plan, Run, Sample, percentile, run_load, summarize
from llava_cli.bench.images import ImageGenerator
from llava_cli.bench.plan import conversations
from llava_cli.bench.progress import Progress
from llava_cli.bench.report import as_text
from llava_cli.bench.svg_plot import draw, duration
from PIL import Image
from rich.console import Console

from tests.client.scripted_server import ScriptedServer, completes
from tests.machine_speed import scaled
from tests.processes import running_site
from tests.wire.redis_server import running_redis

TEXT_ONLY = Plan(images=Images.NONE, num_requests=12)


class Barrier:
    """A responder that does not complete any request until ``size`` requests have arrived."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = Lock()
        self._num_waiting = 0
        self._is_full = Event()
        self.max_waiting = 0

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._num_waiting += 1
            self.max_waiting = max(self.max_waiting, self._num_waiting)
            if self._num_waiting >= self._size:
                self._is_full.set()
        assert self._is_full.wait(scaled(30))
        with self._lock:
            self._num_waiting -= 1
        completes(handler)


def load(plan: Plan, server: ScriptedServer) -> Run:
    return asyncio.run(run_load(plan, server.url, is_warming_up=False))


def test_a_closed_loop_runs_exactly_the_requested_number_of_conversations(server: ScriptedServer) -> None:
    barrier = Barrier(size=4)
    server.script(*[barrier] * 12)
    run = load(replace(TEXT_ONLY, concurrency=4), server)
    assert barrier.max_waiting == 4
    assert len(run.samples) == 12


def test_an_open_loop_does_not_wait_for_responses(server: ScriptedServer) -> None:
    barrier = Barrier(size=12)  # never opens if the load generator waits for responses
    server.script(*[barrier] * 12)
    run = load(replace(TEXT_ONLY, concurrency=None, rate=1000.0), server)
    assert barrier.max_waiting == 12
    assert summarize(run)["errors"] == {}


def test_the_latency_of_an_open_loop_includes_waiting_for_the_limit(server: ScriptedServer) -> None:
    run = load(replace(TEXT_ONLY, concurrency=1, rate=1e6), server)
    ends = sorted(sample.due_s + sample.total_s for sample in run.samples)
    waits = [sample.total_s for sample in sorted(run.samples, key=lambda sample: sample.due_s)]
    assert all(earlier < later for earlier, later in itertools.pairwise(ends))
    assert waits == sorted(waits)  # all requests arrive at nearly the same time, so later ones wait longer


def test_arrivals_are_a_poisson_process(server: ScriptedServer) -> None:
    run = load(replace(TEXT_ONLY, num_requests=300, concurrency=None, rate=2000.0), server)
    due = sorted(sample.due_s for sample in run.samples)
    pauses = [later - earlier for earlier, later in itertools.pairwise(due)]
    mean = sum(pauses) / len(pauses)
    assert mean == pytest.approx(1 / 2000, rel=0.25)
    assert np.std(pauses) == pytest.approx(
        mean, rel=0.3
    )  # as in an exponential distribution; 0 for constant intervals


def test_generated_images_are_readable_and_their_pixels_differ() -> None:
    maker = ImageGenerator(64, 48)
    one, other = (np.asarray(Image.open(io.BytesIO(maker.png(i))).convert("RGB")) for i in (1, 2))
    assert one.shape == (48, 64, 3)
    assert (one != other).any(axis=-1).mean() > 0.95
    assert maker.png(1) == ImageGenerator(64, 48).png(1)


def test_all_questions_are_different() -> None:
    planned = itertools.islice(conversations(replace(TEXT_ONLY, num_turns=2)), 200)
    words = [question.rsplit(" ", 1)[0] for conversation in planned for question in conversation.questions]
    assert len(set(words)) == 400  # the questions differ in more than the final index


def test_a_plan_without_an_end_or_a_pace_is_rejected() -> None:
    with pytest.raises(ValueError, match="Set num_requests or duration_s"):
        Plan(num_requests=None)
    with pytest.raises(ValueError, match="Set at least one of them"):
        Plan(concurrency=None)


def test_percentiles_equal_those_of_numpy() -> None:
    rng = random.Random(3)
    for size in (1, 2, 5, 100):
        values = [rng.expovariate(1.0) for _ in range(size)]
        for percent in (0, 50, 90, 95, 99, 100):
            assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_a_percentile_of_no_values_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)


def run_with(*samples: Sample) -> Run:
    return Run(plan=TEXT_ONLY, base_url="http://x", model="m", started_at=0.0, wall_s=4.0, samples=samples)


GOOD = Sample(talk=1, turn=0, due_s=0.0, total_s=1.0, ttft_s=0.4, gaps_s=(0.1, 0.3, 0.2), num_tokens=7)
FAILED = Sample(talk=2, turn=0, due_s=0.0, total_s=9.0, ttft_s=8.0, gaps_s=(7.0,), error="broken_off")


def test_failed_requests_do_not_count_in_latencies_and_rates() -> None:
    summary = summarize(run_with(GOOD, FAILED))
    assert (summary["ttft_s"]["max"], summary["gap_s"]["max"], summary["total_s"]["count"]) == (0.4, 0.3, 1)
    assert (summary["output_tokens_per_s"], summary["requests_per_s"]) == (7 / 4, 1 / 4)
    assert summary["goodput"]["share"] == 0.5


def test_the_time_per_token_is_based_on_tokens_instead_of_pieces() -> None:
    assert GOOD.tpot_s == pytest.approx(0.6 / 6)
    assert replace(GOOD, num_tokens=1, gaps_s=()).tpot_s is None


def test_the_time_per_token_excludes_the_tokens_of_the_first_piece() -> None:
    """They were generated before it arrived, so no time passed for them."""
    assert replace(GOOD, num_first_tokens=3).tpot_s == pytest.approx(0.6 / 4)
    assert replace(GOOD, num_first_tokens=7).tpot_s is None


def test_a_run_without_completed_requests_can_be_reported_and_plotted() -> None:
    run = run_with(FAILED)
    assert "error broken_off: 1" in as_text(run, summarize(run))
    assert "no values" in draw(run, "<no values>")


def test_the_title_of_the_plot_is_escaped() -> None:
    assert "&lt;b&gt;" in draw(run_with(GOOD), "<b>")


def test_durations_are_formatted_with_a_suitable_unit() -> None:
    assert [duration(seconds) for seconds in (2.5e-4, 0.0413, 1.304)] == ["250 us", "41.3 ms", "1.3 s"]


def test_progress_is_shown_only_on_a_terminal() -> None:
    shown: dict[bool, str] = {}
    for is_terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=is_terminal, width=200)
        with Progress(TEXT_ONLY, console) as progress:
            progress.count(GOOD)
            progress.count(FAILED)
        shown[is_terminal] = out.getvalue()
    assert "1 of 12 completed" in shown[True]
    assert "1 failed" in shown[True]
    assert shown[False] == ""


@contextmanager
def echo_site(folder: Path) -> Iterator[str]:
    with running_redis() as url, running_site(url, folder, echo_step_s=0.005) as site:
        yield site.url


@pytest.mark.e2e
def test_the_token_counts_of_a_real_server_are_used(tmp_path: Path) -> None:
    plan = Plan(num_requests=6, concurrency=3, max_tokens=20, width=64, height=48, num_turns=2)
    with echo_site(tmp_path) as url:
        run = asyncio.run(run_load(plan, url))
    assert summarize(run)["errors"] == {}
    assert run.plan.ignore_eos
    assert [sample.num_tokens for sample in run.samples] == [20] * 12
    # A busy client may read several pieces at once. All of their tokens belong to the first arrival.
    assert all(1 <= sample.num_first_tokens <= 20 for sample in run.samples)
    for sample in run.samples:
        assert sample.finish_reason == "length"
        assert sample.prompt_tokens is not None and sample.prompt_tokens > 0
        assert sample.ttft_s is not None and sample.ttft_s <= sample.total_s
        assert 0 < len(sample.gaps_s) < 20  # some pieces contain several tokens
