"""Room for the numbers of a file: memory, or scratch on disk where a tile is too large for it."""

import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
LARGEST_IN_MEMORY = 2**30
"""How many bytes of numbers a feature may take in memory: 0.9 GB are 10 km, 73 dates and 6 bands UINT16."""


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """The numbers of a file.

    Attributes:
        numbers: (band, row, column); may lie in a file that is mapped into memory.
        release: call it after work on a part: what is mapped goes back to the disk and no longer counts as memory.
        forget: call it for bands whose numbers are not needed any more: they are lost, and their memory is free.
    """

    numbers: NDArray[Any]
    release: Callable[[], None]
    forget: Callable[[slice], None]


def new_planes(shape: tuple[int, int, int], dtype: np.dtype[Any], together: int, scratch: Path) -> Planes:
    """Make room for the numbers of a file, not initialised.

    Args:
        shape: (bands, rows, columns).
        dtype: of the numbers.
        together: how many files of this size are needed at the same time.
        scratch: local folder for what is too large for memory.

    Raises:
        OSError: the disk has not that much space.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    if size * together <= LARGEST_IN_MEMORY:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return Planes(np.frombuffer(memory, dtype).reshape(shape), lambda: None, _forgetting(memory, shape[0]))
    with tempfile.TemporaryFile(dir=scratch) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, and no signal later
        memory = mmap.mmap(file.fileno(), size)
    numbers = np.frombuffer(memory, dtype).reshape(shape)
    return Planes(numbers, lambda: memory.madvise(mmap.MADV_DONTNEED), lambda _: None)


def _forgetting(memory: mmap.mmap, bands: int) -> Callable[[slice], None]:
    """Give back the memory of bands, but for the pages that they share with their neighbours."""
    size = len(memory) // bands

    def forget(gone: slice) -> None:
        for band in range(bands)[gone]:
            first, last = -(-band * size // PAGE) * PAGE, (band + 1) * size // PAGE * PAGE
            if last > first:
                memory.madvise(mmap.MADV_DONTNEED, first, last - first)

    return forget
