import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool

import pytest
from rasterio.env import get_gdal_config

from localhub.engine import EvalscriptError
from localhub.engine.limits import Limits
from localhub.pool import PoolClosed, WorkerPool
from tests.localhub.engine.attempts import GOOD, GOOD_VALUES, HEAD, evaluated, resident_bytes_of

LIMITS = Limits(call_seconds=0.3, memory_bytes=400 * 2**20)
ENDED = (BrokenProcessPool, CancelledError)
"""What tells that the pool was closed before a task had ended, or before its process had begun it."""
_kept: list[bytearray] = []


def keep(megabytes: int) -> int:
    """Take memory for good, outside of any script; return the process."""
    _kept.extend(bytearray(b"x") * 2**20 for _ in range(megabytes))
    return os.getpid()


def process_of(_task: None) -> int:
    return os.getpid()


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    started = WorkerPool(1)
    yield started
    started.close()


def test_a_pool_that_lost_a_process_is_replaced(pool: WorkerPool) -> None:
    assert pool.submit(abs, -3).result(30) == 3
    with pytest.raises(BrokenProcessPool):
        pool.submit(os._exit, 1).result(30)
    assert pool.submit(abs, -4).result(30) == 4


def test_a_process_that_dies_breaks_its_own_task_and_no_other() -> None:
    pool = WorkerPool(2)
    try:
        bystander = pool.submit(time.sleep, 1)
        with pytest.raises(BrokenProcessPool):
            pool.submit(os._exit, 1).result(30)
        assert not bystander.done()
        assert bystander.result(30) is None
    finally:
        pool.close()


def test_tasks_begin_in_the_order_of_their_submission(pool: WorkerPool) -> None:
    ended: list[int] = []
    futures = [pool.submit(abs, number) for number in range(20)]
    for future in futures:
        future.add_done_callback(lambda done: ended.append(done.result()))
    for future in futures:
        future.result(30)
    assert ended == sorted(ended)


def test_closing_ends_a_task_under_way_at_once(pool: WorkerPool) -> None:
    running = pool.submit(time.sleep, 60)
    while not running.running():
        time.sleep(0.01)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 5
    assert isinstance(running.exception(), ENDED)
    with pytest.raises(PoolClosed):
        pool.submit(abs, -1)


@pytest.fixture
def limited() -> Iterator[WorkerPool]:
    started = WorkerPool(2, LIMITS)
    yield started
    started.close()


def test_a_process_that_takes_too_much_memory_says_so_and_breaks_no_other(limited: WorkerPool) -> None:
    bystander = limited.submit(time.sleep, 2)
    with pytest.raises(EvalscriptError) as error:
        limited.submit(keep, 1000).result(30)
    assert str(error.value) == "Failed to evaluate script!\nevalscript.js: it used more than 0.391 GB of memory."
    assert limited.submit(abs, -4).result(30) == 4
    assert bystander.result(30) is None


def test_a_process_in_which_a_task_has_left_much_is_replaced_before_the_next() -> None:
    pool = WorkerPool(1, LIMITS)
    try:
        first = pool.submit(keep, 10).result(30)
        assert pool.submit(keep, 250).result(30) == first
        assert pool.submit(process_of, None).result(30) != first
        assert pool.submit(resident_bytes_of, None).result(30) < 150 * 2**20
    finally:
        pool.close()


def test_a_process_whose_script_cannot_be_interrupted_is_replaced() -> None:
    pool = WorkerPool(1, LIMITS)
    try:
        first = pool.submit(process_of, None).result(30)
        stuck = f"{HEAD}function evaluatePixel() {{ Array.prototype.indexOf.call({{length: 2 ** 53 - 1}}, 0); }}"
        with pytest.raises(EvalscriptError, match=r"it ran longer than 0\.3 s"):
            pool.submit(evaluated, stuck).result(30)
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        assert pool.submit(evaluated, GOOD).result(30) == (GOOD_VALUES, {})
    finally:
        pool.close()


def test_a_script_that_cannot_be_interrupted_lets_a_process_without_a_pool_end_too() -> None:
    code = (
        "from tests.localhub.engine.attempts import HEAD, evaluated\n"
        "from localhub.engine.limits import Limits, impose\n"
        "impose(Limits(call_seconds=0.1))\n"
        "evaluated(HEAD + 'function evaluatePixel() { Array.prototype.indexOf.call({length: 2 ** 53 - 1}, 0); }')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=30, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("evalscript.js: it ran longer than 0.1 s.")


def test_closing_ends_a_script_without_an_end_at_once(pool: WorkerPool) -> None:
    running = pool.submit(evaluated, f"{HEAD}for (;;);")
    while not running.running():
        time.sleep(0.01)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 5
    assert isinstance(running.exception(), ENDED)


def test_gdals_cache_is_small_in_a_worker(pool: WorkerPool) -> None:
    assert pool.submit(get_gdal_config, "GDAL_CACHEMAX").result(30) == 128 * 2**20
