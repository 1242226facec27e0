"""Arrays as eo-learn stores them, written in parallel and without ever being in memory as a whole.

``.npy.gz`` files are gzip streams of several members (RFC 1952, section 2.2), each compressed on its own: Python, NumPy
and eo-learn read them as one. Arrays of zarr (version 2) have one chunk a date, or one in all when they have no dates.
Layout: eo-learn 1.5, ``eolearn.core.eodata_io``.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import imagecodecs
import numpy as np
import zarr
from isal import igzip
from numcodecs import Blosc
from numpy.typing import NDArray

from tasks.workers import in_order, room

FileFormat = Literal["npy.gz", "zarr"]
"""How arrays are stored: gzipped NumPy files, or zarr (version 2) with one chunk a date."""
FLOAT_LEVEL, INTEGER_LEVEL = 3, 1
"""ISA-L's levels: the fastest whose files are at most a tenth larger than those of eo-learn, which has zlib's 1."""
BLOSC, BLOSC_BY_BITS = Blosc(), Blosc(shuffle=Blosc.BITSHUFFLE)
"""Of zarr: eo-learn's own for floats and bytes; for masks and larger integers a faster one, whose files are smaller,
but up to a third larger where data and holes take turns every few pixels."""
BLOSC_HEADER = 16
"""Bytes by which what cannot be compressed grows."""
LARGEST_AT_WORK = 2**30
"""Bytes of zarr's chunks, as they are and compressed, that threads have at the same time."""
MEMBER_BYTES = 2**21
"""How much of an array is compressed at a time: what stays in a processor's cache."""

Digest = Callable[[NDArray[Any]], bytes]
Part = tuple[int, int, int]
"""Frame, first row, and the row after the last one."""


@dataclass(frozen=True, slots=True)
class ArraySource:
    """An array that is made part by part.

    Attributes:
        shape: of the whole; (time, height, width, band) as a rule.
        dtype: of the whole.
        temporal: the first axis is the time. A frame is one date; an array without dates is a single frame.
        read: puts rows of a frame into a C-contiguous array: (frame, first row, row after the last one, array).
        view: gives a frame, C-contiguous, where it exists as a whole and need not be made; None where it does not.
        finished: is told of each frame that has been compressed as a whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    temporal: bool
    read: Callable[[int, int, int, NDArray[Any]], None]
    view: Callable[[int], NDArray[Any] | None] = lambda _: None
    finished: Callable[[int], None] = lambda _: None

    @classmethod
    def of(cls, array: NDArray[Any], *, temporal: bool) -> Self:
        """An array that is in memory."""
        frames = np.ascontiguousarray(array if temporal else array[np.newaxis])

        def read(frame: int, first: int, last: int, rows: NDArray[Any]) -> None:
            rows[...] = frames[frame, first:last]

        return cls(array.shape, array.dtype, temporal, read, frames.__getitem__)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a frame; its first axis is what is called rows here."""
        return self.shape[1:] if self.temporal else self.shape

    def made(self, frame: int, first: int, last: int) -> NDArray[Any]:
        """Rows of a frame, C-contiguous, good until the same thread asks again."""
        whole = self.view(frame)
        if whole is not None:
            return whole[first:last]
        rows = room((last - first, *self.frame_shape[1:]), self.dtype)
        for begin, end in self.row_ranges(first, last):
            self.read(frame, begin, end, rows[begin - first : end - first])
        return rows

    def frames(self) -> Iterator[Part]:
        """Every frame as a whole."""
        for frame in range(self.shape[0] if self.temporal else 1):
            yield (frame, 0, self.frame_shape[0])

    def parts(self) -> Iterator[Part]:
        """Every frame in parts of some `MEMBER_BYTES`, in the order of the array's bytes."""
        for frame, _, rows in self.frames():
            for first, last in self.row_ranges(0, rows):
                yield (frame, first, last)

    def row_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Rows of a frame in parts of some `MEMBER_BYTES`."""
        row_bytes = int(np.prod(self.frame_shape[1:])) * self.dtype.itemsize
        step = max(1, MEMBER_BYTES // max(1, row_bytes))
        for first in range(begin, end, step):
            yield first, min(first + step, end)


def save_array(source: ArraySource, path: Path, file_format: FileFormat, *, hashed: bool = False) -> list[bytes]:
    """Write an array; gives the hash of each part that was compressed if asked to, see `stored_hashes`.

    Args:
        source: the array.
        path: without extension.
        file_format: how it is stored.
        hashed: whether to hash.

    Raises:
        OSError: the file system refuses or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save = _save_zarr if file_format == "zarr" else _save_npy
    return list(save(source, array_path(path, file_format), _hash if hashed else _no_hash))


def array_path(path: Path, file_format: FileFormat) -> Path:
    """Path of an array's file, or folder of zarr, with its extension."""
    return path.with_name(f"{path.name}.{file_format}")


def stored_hashes(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, temporal: bool) -> list[bytes]:
    """Read an array back, part by part, and give the hashes of its parts as `save_array` does.

    Raises:
        ValueError: shape or type are other ones.
        Exception: whatever the formats raise on damage.
    """
    layout = ArraySource(shape, dtype, temporal, lambda *_: None)
    read = _read_zarr if path.suffix == ".zarr" else _read_npy
    return [_hash(part) for part in read(path, layout)]


def _save_npy(source: ArraySource, path: Path, digest: Digest) -> Iterator[bytes]:
    level = FLOAT_LEVEL if source.dtype.kind == "f" else INTEGER_LEVEL

    def compressed(part: Part) -> tuple[bytes, bytes]:
        content = source.made(*part)
        return igzip.compress(content.reshape(-1).view(np.uint8), level, mtime=0), digest(content)

    with path.open("wb") as file:
        file.write(igzip.compress(_npy_header(source.shape, source.dtype), level, mtime=0))
        for (frame, _, last), (member, hashed) in zip(
            source.parts(), in_order(compressed, source.parts()), strict=True
        ):
            file.write(member)
            if last == source.frame_shape[0]:
                source.finished(frame)
            yield hashed


def _save_zarr(source: ArraySource, path: Path, digest: Digest) -> Iterator[bytes]:
    chunk = (1, *source.frame_shape) if source.temporal else source.shape
    by_bits = source.dtype.kind == "b" or (source.dtype.kind in "iu" and source.dtype.itemsize > 1)
    compressor = BLOSC_BY_BITS if by_bits else BLOSC
    store = zarr.DirectoryStore(str(path))
    array = zarr.create(source.shape, chunks=chunk, dtype=source.dtype, compressor=compressor, store=store)

    def stored(part: Part) -> bytes:
        content = source.made(*part)
        # zarr would look for a chunk that may be there, compare it with the fill value, and copy it twice
        name = ".".join(map(str, (part[0] if source.temporal else 0, *[0] * len(source.frame_shape))[-array.ndim :]))
        (path / name).write_bytes(by_blosc(content, compressor))
        hashed = digest(content)
        source.finished(part[0])  # what the content may be a view of is gone now
        return hashed

    frame_bytes = int(np.prod(source.frame_shape)) * source.dtype.itemsize
    yield from in_order(stored, source.frames(), max(1, LARGEST_AT_WORK // (2 * frame_bytes)))


def by_blosc(content: NDArray[Any], how: Blosc) -> bytes | bytearray:
    """Compress as numcodecs does; by imagecodecs, faster, into memory that is good until the thread asks again."""
    return imagecodecs.blosc_encode(
        content.reshape(-1),  # type: ignore[arg-type]
        level=how.clevel,
        compressor=how.cname,
        shuffle=how.shuffle,
        typesize=content.itemsize,
        numthreads=1,
        out=room((content.nbytes + BLOSC_HEADER,), np.dtype(np.uint8), "coded"),  # type: ignore[arg-type]
    )


def _read_npy(path: Path, layout: ArraySource) -> Iterator[NDArray[Any]]:
    with igzip.open(path, "rb") as file:  # type: ignore[no-untyped-call]
        header = _npy_header(layout.shape, layout.dtype)
        if file.read(len(header)) != header:
            raise ValueError(f"{path.name} is no array of shape {layout.shape} and type {layout.dtype}")
        for _, first, last in layout.parts():
            size = (last - first) * int(np.prod(layout.frame_shape[1:])) * layout.dtype.itemsize
            yield np.frombuffer(file.read(size), np.uint8)
        if file.read(1):
            raise ValueError(f"{path.name} is longer than an array of shape {layout.shape}")


def _read_zarr(path: Path, layout: ArraySource) -> Iterator[NDArray[Any]]:
    array = zarr.open_array(zarr.DirectoryStore(str(path)), mode="r")
    if (array.shape, array.dtype) != (layout.shape, layout.dtype):
        raise ValueError(f"{path.name} has shape {array.shape} and type {array.dtype}, expected {layout.shape}")
    for frame, _, _ in layout.frames():
        yield array[frame] if layout.temporal else array[...]


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Give what stands in an .npy file before the numbers, as `numpy.save` writes it."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def _hash(content: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(content).reshape(-1).view(np.uint8)).digest()  # type: ignore[arg-type]


def _no_hash(_: NDArray[Any]) -> bytes:
    return b""
