"""The budgets of stored data follow from Redis's memory limit, and leave a reserve."""

from __future__ import annotations

import pytest
from llava_server.redis_budgets import RedisBudgets
from llava_server.settings import Settings

GIB = 2**30


def test_the_default_budgets_leave_a_fifth_of_the_memory_free() -> None:
    budgets = RedisBudgets.derive(Settings(), 4 * GIB)
    total = budgets.jobs + budgets.images + budgets.files + budgets.stored_responses
    assert total == pytest.approx(0.8 * 4 * GIB, abs=10)
    assert budgets.problem(4 * GIB) is None


def test_without_a_memory_limit_the_budgets_are_those_of_one_gib_and_a_problem_is_reported() -> None:
    budgets = RedisBudgets.derive(Settings(), 0)
    assert budgets == RedisBudgets.derive(Settings(), GIB)
    assert "maxmemory" in (budgets.problem(0) or "")


def test_configured_budgets_that_exceed_the_memory_are_reported_with_the_numbers() -> None:
    budgets = RedisBudgets.derive(Settings(max_all_images_mb=1000), GIB)
    assert budgets.images == 1000 << 20
    problem = budgets.problem(GIB) or ""
    assert "1563 MiB" in problem
    assert "1024 MiB" in problem


def test_the_budgets_of_a_sharded_queue_leave_the_same_reserve_on_the_server_with_the_stores() -> None:
    """Each shard accepts 1.25 times its share, and each server has two of the four shards."""
    urls = "redis://one:6379/0 redis://two:6379/0"
    settings = Settings(queue_urls=urls, queue_shards=4)
    sharded, single = RedisBudgets.derive(settings, GIB), RedisBudgets.derive(Settings(), GIB)
    assert sharded.jobs == pytest.approx(single.jobs * 2 / 1.25, abs=1)
    assert sharded.images == pytest.approx(single.images * 2 / 1.25, abs=1)
    assert (sharded.files, sharded.stored_responses) == (single.files, single.stored_responses)
    assert sharded.problem(GIB) is None
    too_large = Settings(queue_urls=urls, queue_shards=4, max_all_images_mb=1000)
    assert "1188 MiB" in (RedisBudgets.derive(too_large, GIB).problem(GIB) or "")


def test_images_in_a_separate_store_are_limited_by_its_size_and_use_no_memory_of_the_queue() -> None:
    settings = Settings(image_store="redis://images", max_all_jobs_mb=480)
    budgets = RedisBudgets.derive(settings, GIB, 10 * GIB)
    assert budgets.images == pytest.approx(7 * GIB, abs=1)
    assert budgets.problem(GIB) is None
    assert RedisBudgets.derive(Settings(max_all_jobs_mb=480), GIB).problem(GIB)
    sharded = RedisBudgets.derive(Settings(image_store="redis://images", queue_shards=4), GIB, 10 * GIB)
    assert sharded.images == pytest.approx(7 * GIB / 1.25, abs=1)  # each shard accepts 1.25 times its share
    assert RedisBudgets.derive(settings, GIB).images == pytest.approx(0.7 * GIB, abs=1)
