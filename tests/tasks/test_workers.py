"""The threads that compute: results in order, and nobody at work any more once it is over."""

import threading
import time

import pytest

from tasks.workers import in_order, processors


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(in_order(work, range(30))) == [item * item for item in range(30)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_are_at_work_than_is_asked_for(at_once: int) -> None:
    at_work, lock, most = 0, threading.Lock(), 0

    def work(item: int) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.01)
        with lock:
            at_work -= 1
        return item

    assert list(in_order(work, range(12), at_once)) == list(range(12))
    assert most == at_once


@pytest.mark.parametrize("by", ["an error", "giving up"])
def test_nothing_is_at_work_when_it_ends(by: str) -> None:
    at_work, lock = set[int](), threading.Lock()

    def work(item: int) -> int:
        with lock:
            at_work.add(item)
        time.sleep(0.05)
        if item == 1 and by == "an error":
            raise ValueError("damaged")
        time.sleep(0.05)
        with lock:
            at_work.remove(item)
        return item

    results = in_order(work, range(10 * processors()))
    assert next(results) == 0
    if by == "an error":
        with pytest.raises(ValueError, match="damaged"):
            list(results)
    else:
        results.close()
    assert at_work <= {1}
