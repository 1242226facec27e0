"""The content of a delivered file: bytes that were fetched, or a local file that is read where it lies."""

import io
import os
import tempfile
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import rasterio
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from rasterio.io import MemoryFile

LARGEST_IN_MEMORY = 2**27
"""What is larger is fetched to a scratch file; bytes."""


class Content(ABC):
    """A file that several threads read at once. A context manager: close it."""

    size: int
    """Length in bytes."""

    @abstractmethod
    def read_at(self, start: int, size: int) -> bytes | memoryview:
        """Give ``size`` bytes from ``start`` on, fewer where the file ends."""

    @abstractmethod
    def opened_by_gdal(self) -> AbstractContextManager[Any]:
        """Open as a GeoTIFF; raises RasterioError when it is none."""

    @abstractmethod
    def for_tifffile(self) -> BinaryIO | str:
        """What tifffile opens."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Fetched(Content):
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content
        self._memory: MemoryFile | None = None

    def read_at(self, start: int, size: int) -> memoryview:
        """Give a view, nothing is copied."""
        return memoryview(self._content)[start : start + size]

    def opened_by_gdal(self) -> AbstractContextManager[Any]:
        """Open as a GeoTIFF in memory."""
        self._memory = MemoryFile(self._content or b"empty")
        return self._memory.open(driver="GTiff")  # type: ignore[no-any-return]

    def for_tifffile(self) -> BinaryIO:
        """Give a file in memory."""
        return io.BytesIO(self._content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._memory is not None:
            self._memory.close()


class OnDisk(Content):
    """A local file; one that was fetched vanishes when it is closed."""

    def __init__(self, path: str, *, temporary: bool = False) -> None:
        self._path = path
        self._temporary = temporary
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def read_at(self, start: int, size: int) -> bytes:
        """Read."""
        return os.pread(self._descriptor, size, start)

    def opened_by_gdal(self) -> AbstractContextManager[Any]:
        """Open as a GeoTIFF."""
        return rasterio.open(self._path, driver="GTiff")  # type: ignore[no-any-return]

    def for_tifffile(self) -> str:
        """Give the path."""
        return self._path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if self._temporary:
            Path(self._path).unlink()


def open_content(source: AbstractFileSystem, path: str, size: int, scratch: Path) -> Content:
    """Open a file on any file system; a remote one is fetched, a large one to the ``scratch`` folder.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(source, LocalFileSystem):
        with source.open(path, "rb") as file:
            return OnDisk(file.path)
    if size <= LARGEST_IN_MEMORY:
        return Fetched(bytes(source.cat_file(path)))
    descriptor, local = tempfile.mkstemp(dir=scratch)
    os.close(descriptor)
    source.get_file(path, local)
    return OnDisk(local, temporary=True)
