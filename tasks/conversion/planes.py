"""Room for the numbers of a tile's files: memory, or scratch on disk where a tile is too large for it.

New memory must be cleared by the system, which takes up to a tenth of a conversion. So what a written frame gives back
is used for the next files, and what a tile had is kept for the next tile; the system may take it while no tile has it.
"""

import mmap
import os
import tempfile
import threading
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNED = 64
"""Numbers begin at multiples of so many bytes: a line of a processor's cache."""
LARGEST_IN_MEMORY = 2**30
"""How many bytes of numbers a feature may take in memory: 0.9 GB are 10 km, 73 dates and 6 bands UINT16."""


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """The numbers of a file.

    Attributes:
        numbers: (band, row, column); may lie in a file that is mapped into memory.
        release: call it after work on a part: what is mapped goes back to the disk and no longer counts as memory.
        forget: call it, once, for bands whose numbers are not needed any more: their memory is used for others.
    """

    numbers: NDArray[Any]
    release: Callable[[], None]
    forget: Callable[[slice], None]


@dataclass(slots=True)
class Region:
    """A piece of the system's memory.

    Attributes:
        memory: the piece.
        free: what nobody has, (first byte, byte after the last one), ascending; pieces do not touch each other.
        used: whether anybody had some of it since the last `Pool.rest`.
    """

    memory: mmap.mmap
    free: list[tuple[int, int]]
    used: bool = True


class Pool:
    """Memory for the files of one tile at a time; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: list[Region] = []

    def take(self, size: int) -> tuple[Region, int]:
        """Give so many bytes, not initialised: the region and the first of them."""
        with self._lock:
            for region in self._regions:
                for place, (begin, end) in enumerate(region.free):
                    first = -(-begin // ALIGNED) * ALIGNED
                    if first + size <= end:
                        rest = [(begin, first), (first + size, end)]
                        region.free[place : place + 1] = [(low, high) for low, high in rest if low < high]
                        region.used = True
                        return region, first
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            _advise(memory, "MADV_HUGEPAGE")
            region = Region(memory, [])
            insort(self._regions, region, key=lambda one: len(one.memory))  # the smallest that suffices is taken
            return region, 0

    def give_back(self, region: Region, begin: int, end: int) -> None:
        """Take bytes back, which `take` gave, alone or as a part."""
        with self._lock:
            free: list[tuple[int, int]] = []
            for low, high in sorted([*region.free, (begin, end)]):
                if free and free[-1][1] == low:
                    free[-1] = (free[-1][0], high)
                else:
                    free.append((low, high))
            region.free = free

    def rest(self) -> None:
        """Take everything back; what was not used goes to the system, and the rest where the system is short of it."""
        with self._lock:
            self._regions = [
                Region(one.memory, [(0, len(one.memory))], used=False) for one in self._regions if one.used
            ]
            for region in self._regions:
                _advise(region.memory, "MADV_FREE")


_idle: list[Pool] = []


@contextmanager
def tile_pool() -> Iterator[Pool]:
    """A pool for one tile; nothing may use its memory any more when that is left."""
    try:
        pool = _idle.pop()
    except IndexError:
        pool = Pool()
    yield pool
    pool.rest()
    _idle.append(pool)  # not after an error, which may have ended the waiting for threads, too


class Rooms:
    """Room for the files of a feature: side by side, date by date, so that what a frame gives back is in one piece.

    Args:
        pool: the tile's.
        scratch: local folder for what is too large for memory.
        files: how many there are.
        most_files: of the tile's largest feature; it decides for all files of the tile where they go.
    """

    def __init__(self, pool: Pool, scratch: Path, files: int, most_files: int) -> None:
        self._pool, self._scratch, self._files, self._most_files = pool, scratch, files, most_files
        self._lock = threading.Lock()
        self._made: dict[tuple[tuple[int, int, int], np.dtype[Any]], list[Planes]] = {}

    def planes(self, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Planes:
        """Give room for the numbers of another file, not initialised.

        Args:
            shape: (bands, rows, columns).
            dtype: of the numbers.

        Raises:
            OSError: the disk has not that much space.
        """
        size = int(np.prod(shape)) * dtype.itemsize
        if size * self._most_files > LARGEST_IN_MEMORY:
            return self._on_scratch(shape, dtype, size)
        with self._lock:
            kind = (shape, dtype)
            if not self._made.get(kind):
                alone = bool(self._made)  # files that differ do not lie side by side
                self._made[kind] = list(self._in_memory(shape, dtype, 1 if alone else self._files))
            return self._made[kind].pop()

    def settle(self) -> None:
        """Give back the room of files that were of another shape or type; call it when all files are there."""
        with self._lock:
            for planes in self._made.values():
                while planes:
                    planes.pop().forget(slice(None))

    def _in_memory(self, shape: tuple[int, int, int], dtype: np.dtype[Any], files: int) -> Iterator[Planes]:
        bands, plane = shape[0], shape[1] * shape[2] * dtype.itemsize
        region, start = self._pool.take(bands * files * plane)
        together = np.frombuffer(region.memory, dtype, bands * files * plane // dtype.itemsize, start)
        by_file = together.reshape(bands, files, *shape[1:]).swapaxes(0, 1)

        def forgetting(file: int) -> Callable[[slice], None]:
            def forget(gone: slice) -> None:
                for band in range(bands)[gone]:
                    begin = start + (band * files + file) * plane
                    self._pool.give_back(region, begin, begin + plane)

            return forget

        for file, numbers in enumerate(by_file):
            yield Planes(numbers, lambda: None, forgetting(file))

    def _on_scratch(self, shape: tuple[int, int, int], dtype: np.dtype[Any], size: int) -> Planes:
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, and no signal later
            memory = mmap.mmap(file.fileno(), size)
        numbers = np.frombuffer(memory, dtype).reshape(shape)
        return Planes(numbers, lambda: _advise(memory, "MADV_DONTNEED"), lambda _: None)


def _advise(memory: mmap.mmap, advice: str) -> None:
    """Tell the system how memory is used; one that does not know the advice does without."""
    if hasattr(mmap, advice):
        with suppress(OSError):
            memory.madvise(getattr(mmap, advice))
