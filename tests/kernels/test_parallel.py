"""The thread pool: every task once, one call per thread number, exceptions come out."""

from __future__ import annotations

import itertools
import os

import pytest
from kernel_support import native

from mmengine import errors


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 100, 70_001])
def test_every_task_runs_once_per_loop(threads: int, tasks: int) -> None:
    loops = 20
    seen, shared = native.ThreadPool(threads).count(tasks, loops)
    assert seen == [loops] * tasks
    assert not shared


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [1, 2, 7, 100, 70_001])
def test_shares_cover_the_tasks_in_order_and_evenly(threads: int, tasks: int) -> None:
    begins = native.ThreadPool(threads).shares(tasks)
    sizes = [end - begin for begin, end in itertools.pairwise(begins)]
    chunk = -(-tasks // min(tasks, 16 * threads))
    assert begins[0] == 0
    assert begins[-1] == tasks
    assert max(sizes) - min(sizes) <= chunk


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_exception_leaves_the_loop_and_the_pool_goes_on(threads: int) -> None:
    pool = native.ThreadPool(threads)
    for task in (0, 33, 99):
        with pytest.raises(errors.RequestError, match=f"number {task} fails"):
            pool.fail_at(100, task)
        assert pool.count(50, 3)[0] == [3] * 50


def test_many_short_loops_and_pools() -> None:
    assert native.ThreadPool(4).count(5, 20_000)[0] == [20_000] * 5
    for _ in range(200):
        assert native.ThreadPool(3).count(3, 1)[0] == [1] * 3


def test_threads_follow_the_affinity_mask() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert native.available_processors() == 1
        assert native.ThreadPool(0).threads == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= native.available_processors() <= len(allowed)
    with pytest.raises(errors.UsageError, match="threads: expected 0"):
        native.ThreadPool(-2)
