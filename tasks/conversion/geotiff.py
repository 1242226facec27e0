"""The blocks of a GeoTIFF, decoded independently of each other.

A file's tags tell where its blocks lie and how they are coded. Blocks are inflated by libdeflate, twice as fast as by
the GDAL in rasterio's wheel, and their Adler-32 is compared, which GDAL does not: damage never becomes wrong numbers.
Every job here releases Python's lock while it works, so that jobs run in parallel on threads.

What has another compression than DEFLATE, or another byte order or sample width than NumPy's, is left to GDAL.

Source of the rules: TIFF 6.0, sections 14 (predictor 2) and 15 (tiles), and Adobe's Technical Note 3 (predictor 3).
"""

import operator
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from tasks.conversion.content import Content
from tasks.workers import room

DEFLATE = (8, 32946)
"""Values of the tag Compression for zlib streams: Adobe's and the older one."""
NO_PREDICTOR, HORIZONTAL, FLOATING_POINT = 1, 2, 3
"""Values of the tag Predictor."""
JOB_BYTES = 2**22
"""How much a job decodes at least, where blocks are small."""
TURNED_BYTES = 2**18
"""How much of a block changes its axes at once: it stays in a processor's cache; with less, threads wait for Python."""


class DamagedBlock(Exception):
    """A block is cut off, does not match its checksum, or is not as large as the tags say."""


@dataclass(frozen=True, slots=True)
class Job:
    """A part of a file: some bands of some whole rows, and the blocks that it takes.

    Attributes:
        bands: half-open range of positions on the band axis.
        rows: half-open range of rows.
        blocks: position in the list of blocks, first row and first column of each.
    """

    bands: tuple[int, int]
    rows: tuple[int, int]
    blocks: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file's numbers are cut into blocks, and coded.

    Attributes:
        shape: (bands, rows, columns).
        dtype: of the numbers.
        block: (rows, columns) of a block; strips are blocks as wide as the file.
        pixel_interleaved: a block holds all bands, (row, column, band); else one band.
        padded: blocks at the lower edge are as high as all others, and the rest of them is filled.
        predictor: value of the tag.
        fill: number in blocks that a sparse file leaves out.
        places: (start, size) of each block in bytes; of band-interleaved files, band after band.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    block: tuple[int, int]
    pixel_interleaved: bool
    padded: bool
    predictor: int
    fill: float
    places: tuple[tuple[int, int], ...]

    @property
    def samples(self) -> int:
        """Bands of a block."""
        return self.shape[0] if self.pixel_interleaved else 1

    def jobs(self) -> Iterator[Job]:
        """Cut the file into rows of blocks, several where they are small."""
        bands, height, width = self.shape
        rows, columns = self.block
        across, down = -(-width // columns), -(-height // rows)
        together = max(1, JOB_BYTES // (rows * width * self.samples * self.dtype.itemsize))
        for band in range(0, bands, self.samples):
            base = band // self.samples * across * down
            for first in range(0, down, together):
                last = min(first + together, down)
                blocks = tuple(
                    (base + row * across + column, row * rows, column * columns)
                    for row in range(first, last)
                    for column in range(across)
                )
                yield Job((band, band + self.samples), (first * rows, min(last * rows, height)), blocks)


def read_layout(file: BinaryIO | str, fill: float) -> Layout | None:
    """Read a file's tags; None where decoding it is left to GDAL.

    Args:
        file: opened, or its path.
        fill: number in blocks that a sparse file leaves out.

    Raises:
        DamagedBlock: tags contradict each other.
        tifffile.TiffFileError: tags cannot be read.
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            layout = _layout(tiff, fill)
            blocks = 0 if layout is None else sum(len(job.blocks) for job in layout.jobs())
    except (ValueError, TypeError, LookupError, ArithmeticError, struct.error) as error:
        raise DamagedBlock(f"tags: {error!r}") from error
    if layout is not None and len(layout.places) != blocks:
        raise DamagedBlock(f"tags tell {len(layout.places)} blocks, too many or too few for {layout.shape}")
    return layout


def _layout(tiff: tifffile.TiffFile, fill: float) -> Layout | None:
    page = tiff.pages.first
    assert isinstance(page, tifffile.TiffPage)  # noqa: S101 - only later pages may be reduced to frames
    dtype = page.dtype
    native = tiff.byteorder == {"little": "<", "big": ">"}[sys.byteorder]
    if page.compression not in DEFLATE or page.fillorder != 1 or not native:
        return None
    if dtype is None or page.bitspersample != 8 * dtype.itemsize or page.predictor > FLOATING_POINT:
        return None
    height = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    return Layout(
        shape=(page.samplesperpixel, page.imagelength, page.imagewidth),
        dtype=dtype,
        block=(height, page.tilewidth if page.is_tiled else page.imagewidth),
        pixel_interleaved=page.planarconfig == tifffile.PLANARCONFIG.CONTIG,
        padded=page.is_tiled,
        predictor=int(page.predictor),
        fill=fill,
        places=tuple(_places(page, tiff.filehandle.size)),
    )


def _places(page: tifffile.TiffPage, file_size: int) -> Iterator[tuple[int, int]]:
    """Where each block lies.

    Raises:
        ValueError, TypeError: not in the file; damaged tags may tell anything.
    """
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if not 0 <= start <= start + size <= file_size:
            raise ValueError(f"a block of {size} bytes at {start}, in a file of {file_size}")
        yield operator.index(start), operator.index(size)


def decode_job(content: Content, layout: Layout, job: Job, numbers: NDArray[Any]) -> None:
    """Decode the blocks of a job into their place.

    Args:
        content: of the file.
        layout: of the file.
        job: one of the layout's.
        numbers: (band, row, column) of the whole file; the job's part of it is written.

    Raises:
        DamagedBlock: one of the blocks is damaged.
    """
    for index, row, column in job.blocks:
        target = numbers[slice(*job.bands), row : row + layout.block[0], column : column + layout.block[1]]
        start, size = layout.places[index]
        if size:
            _place(_inflated(content, layout, start, size, target.shape[1]), layout, target)
        else:
            target[...] = layout.fill


def decode_with_gdal(raster: DatasetReader, numbers: NDArray[Any]) -> None:
    """Read a file of any kind into its place, some rows at a time.

    Raises:
        rasterio.errors.RasterioError: a block is damaged.
    """
    rows = raster.block_shapes[0][0]
    for first in range(0, raster.height, rows):
        last = min(first + rows, raster.height)
        numbers[:, first:last] = raster.read(window=Window(0, first, raster.width, last - first))


def _inflated(content: Content, layout: Layout, start: int, size: int, rows: int) -> NDArray[Any]:
    """Give the numbers of a block as they are stored, (row, column, band)."""
    coded = content.read_at(start, size)
    shape = (layout.block[0] if layout.padded else rows, layout.block[1], layout.samples)
    stored = room(shape, layout.dtype)
    try:
        found = imagecodecs.deflate_decode(coded, out=stored.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    except imagecodecs.DeflateError as error:
        raise DamagedBlock(f"block at {start}: {error}") from error
    if len(coded) != size or len(found) != stored.nbytes:
        raise DamagedBlock(f"block at {start}: {len(found)} of {stored.nbytes} bytes")
    return stored


def _place(stored: NDArray[Any], layout: Layout, target: NDArray[Any]) -> None:
    """Undo the predictor and put a block's numbers where they belong, (band, row, column), in one go."""
    _, rows, columns = target.shape
    if layout.predictor == FLOATING_POINT:
        stored = imagecodecs.floatpred_decode(stored, axis=-2)
    stored, unsigned = stored[:rows, :columns], f"u{stored.itemsize}"
    if layout.predictor != HORIZONTAL:
        target[...] = stored.transpose(2, 0, 1)
    elif layout.samples == 1:  # an axis less: three times as fast
        imagecodecs.delta_decode(stored[:, :, 0].view(unsigned), axis=1, out=target[0].view(unsigned))
    else:
        step = max(1, TURNED_BYTES // stored[0].nbytes)
        for row in range(0, rows, step):
            turned = stored[row : row + step].transpose(2, 0, 1)
            imagecodecs.delta_decode(turned.view(unsigned), axis=2, out=target[:, row : row + step].view(unsigned))
