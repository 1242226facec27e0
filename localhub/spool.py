"""Samples on scratch, for tiles whose samples do not fit into memory together.

A file's compressed blocks are often higher than a block of rows (1024 pixels in archives of Sentinel-2 COGs). Read by
blocks of rows they would be fetched and decoded again for each; so samples are read one by one, in parts as large as
memory allows, and kept uncompressed until their rows are due.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

NO_DATA_DTYPE: Final = np.dtype(np.uint16)
"""Of a band that has no data in any sample."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of one band of one sample."""

    sample: int
    first: int
    end: int
    """The row after the last."""
    dtype: np.dtype[Any]
    offset_bytes: int


class Spool:
    """The samples of a tile in a file without a name; a context manager that frees it.

    Args:
        samples: how many there are.
        width: columns of the tile.
        folder: where the file is; None = the system's folder for temporary files.
    """

    def __init__(self, samples: int, width: int, folder: Path | None) -> None:
        self._samples = samples
        self._width = width
        self._parts: dict[str, list[_Part]] = {}
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, sample: int, first: int, bands: Mapping[str, NDArray[Any]]) -> None:
        """Keep rows of a sample from the `first` on: band → (rows, columns), of those bands that have data there."""
        for band, values in bands.items():
            part = _Part(sample, first, first + len(values), values.dtype, self._file.tell())
            self._file.write(np.ascontiguousarray(values).data)
            self._parts.setdefault(band, []).append(part)

    def rows(self, band: str, first: int, count: int) -> NDArray[Any]:
        """Return (samples, count, columns) of a band, 0 where there is no data, in a dtype that holds all samples."""
        parts = self._parts.get(band, [])
        dtype = np.result_type(*(part.dtype for part in parts)) if parts else NO_DATA_DTYPE
        result = np.zeros((self._samples, count, self._width), dtype)
        for part in parts:
            start, end = max(part.first, first), min(part.end, first + count)
            if start < end:
                result[part.sample, start - first : end - first] = self._read(part, start, end)
        return result

    def _read(self, part: _Part, start: int, end: int) -> NDArray[Any]:
        values = np.empty((end - start, self._width), part.dtype)
        self._file.seek(part.offset_bytes + (start - part.first) * self._width * part.dtype.itemsize)
        self._file.readinto(values.data)
        return values
