"""Memory of a tile's numbers: nobody else gets what somebody has, and what was given back is used again."""

import errno
import mmap
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.conversion import planes
from tasks.conversion.planes import ALIGNED, Planes, Pool, Rooms, tile_pool

UINT16 = np.dtype("uint16")
SHAPE = (4, 10, 10)


@pytest.fixture(autouse=True)
def none_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "_idle", [])


def address(file: Planes) -> int:
    return int(file.numbers.__array_interface__["data"][0])


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 20), st.booleans()), max_size=40))
def test_what_is_taken_is_nobody_elses(steps: list[tuple[int, int, bool]]) -> None:
    pool = Pool()
    taken: list[tuple[memoryview, int]] = []
    pieces = []
    for number, (size, which, again) in enumerate(steps):
        if again and pieces:
            region, begin, end = pieces.pop(which % len(pieces))
            middle = (begin + end) // 2  # in two parts, as frames come back one by one
            for part in ((middle, end), (begin, middle)):
                if part[0] < part[1]:
                    pool.give_back(region, *part)
            taken = [(bytes_, mark) for bytes_, mark in taken if mark != region.memory[begin]]
            continue
        region, begin = pool.take(size)
        assert begin % ALIGNED == 0
        pieces.append((region, begin, begin + size))
        view = memoryview(region.memory)[begin : begin + size]
        view[:] = bytes([number]) * size
        taken.append((view, number))
    for view, mark in taken:
        assert view == bytes([mark]) * len(view)


def test_a_frame_that_was_written_makes_room_for_the_next_feature() -> None:
    with tile_pool() as pool:
        bands = [room.planes(SHAPE, UINT16) for room in [Rooms(pool, Path(), 3, 3)] for _ in range(3)]
        first = min(map(address, bands))
        for file in bands[:2]:
            file.forget(slice(0, 2))
        other = Rooms(pool, Path(), 1, 3).planes(SHAPE, UINT16)
        assert not first <= address(other) < first + 3 * bands[0].numbers.nbytes  # two dates of one file are in use
        bands[2].forget(slice(0, 2))
        assert address(Rooms(pool, Path(), 1, 3).planes(SHAPE, UINT16)) == first


def test_files_of_a_feature_do_not_overlap_whatever_their_types() -> None:
    with tile_pool() as pool:
        rooms, types = Rooms(pool, Path(), 4, 4), ("uint16", "uint8", "uint16", "float32")
        files = [rooms.planes(SHAPE, np.dtype(dtype)) for dtype in types]
        for number, file in enumerate(files):
            file.numbers[...] = number
        for number, (file, dtype) in enumerate(zip(files, types, strict=True)):
            assert (file.numbers.shape, file.numbers.dtype) == (SHAPE, dtype)
            assert (file.numbers == number).all()


def test_room_is_kept_for_the_files_that_came_whatever_their_types() -> None:
    with tile_pool() as pool:
        rooms = Rooms(pool, Path(), 6, 6)
        shapes = [SHAPE, SHAPE, (1, 10, 10), (2, 10, 10), SHAPE, SHAPE]
        types = ["uint16", "uint16", "uint16", "uint16", "uint8", "float32"]
        files = [rooms.planes(shape, np.dtype(dtype)) for shape, dtype in zip(shapes, types, strict=True)]
        rooms.settle()
        free = sum(end - begin for region in pool._regions for begin, end in region.free)
        needed = sum(file.numbers.nbytes for file in files)
        assert sum(len(region.memory) for region in pool._regions) - free == needed
        assert free <= 4 * files[0].numbers.nbytes


class Stubborn(mmap.mmap):
    """Memory of a system that takes no advice."""

    def madvise(self, *_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


def test_a_system_that_takes_no_advice_costs_speed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planes.mmap, "mmap", Stubborn)
    with tile_pool() as pool:
        file = Rooms(pool, tmp_path, 1, 1).planes(SHAPE, UINT16)
        file.numbers[...] = 1
        monkeypatch.setattr(planes, "LARGEST_IN_MEMORY", 0)
        on_scratch = Rooms(pool, tmp_path, 1, 1).planes(SHAPE, UINT16)
        on_scratch.numbers[...] = 2
        on_scratch.release()
        assert (on_scratch.numbers == 2).all()


def test_the_next_tile_has_the_memory_of_the_last_one_but_not_that_of_one_that_failed() -> None:
    def places() -> list[int]:
        with tile_pool() as pool:
            return [address(Rooms(pool, Path(), 1, 1).planes((4, 100 * side, 10), UINT16)) for side in (1, 3)]

    first = places()
    assert places() == first
    with suppress(ValueError), tile_pool() as pool:
        kept = Rooms(pool, Path(), 1, 1).planes((4, 100, 10), UINT16)
        raise ValueError
    assert address(kept) == first[0]
    assert first[0] not in places()


def test_memory_that_a_tile_did_not_need_is_given_to_the_system() -> None:
    with tile_pool() as pool:
        large, small = (Rooms(pool, Path(), 1, 1).planes((4, 100 * side, 10), UINT16) for side in (3, 1))
        sizes = {large.numbers.nbytes, small.numbers.nbytes}
        assert {len(region.memory) for region in pool._regions} == sizes
    for _ in range(2):
        with tile_pool() as same:
            assert same is pool
            Rooms(pool, Path(), 1, 1).planes((4, 100, 10), UINT16)
    assert {len(region.memory) for region in pool._regions} == {small.numbers.nbytes}


def test_tiles_at_the_same_time_have_pools_of_their_own() -> None:
    inside = threading.Barrier(2, timeout=20)
    found: list[Pool] = []

    def work() -> None:
        with tile_pool() as pool:
            found.append(pool)
            inside.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is not found[1]
