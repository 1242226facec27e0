import os
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import pytest

from localhub.pool import PoolClosed, WorkerPool


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
    assert isinstance(running.exception(), BrokenProcessPool)
    with pytest.raises(PoolClosed):
        pool.submit(abs, -1)
