"""Writing results: rasters grow block by block on scratch, then become GeoTIFFs or cloud optimised GeoTIFFs.

Not specified publicly and therefore ours: DEFLATE compression, and blocks that are no larger than the raster.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetWriter
from rasterio.shutil import copy
from rasterio.windows import Window

from localhub.engine import Output
from localhub.payload import CogParameters
from tasks.grid import Tile

_DEFLATE_LEVEL = 1
"""Fast: level 6 takes 1.4 times as long for files that are 2 % smaller (24 bands of a noisy UINT16 landscape)."""
_LARGEST_BLOCK_BYTES = 128 * 2**20
"""Of all bands together: GDAL takes two to three times a block to write it."""
_OVERVIEW_RESAMPLING = {
    "nearest": Resampling.nearest,
    "average": Resampling.average,
    "gauss": Resampling.gauss,
    "cubic": Resampling.cubic,
    "cubicspline": Resampling.cubic_spline,
    "lanczos": Resampling.lanczos,
    "average_magphase": Resampling.average,  # differs for complex numbers only
    "mode": Resampling.mode,
}


class RasterStack:
    """The rasters of one feature while they are computed, one uncompressed file for each output below `folder`."""

    def __init__(self, folder: Path, tile: Tile, outputs: Iterable[Output]) -> None:
        self.outputs: Mapping[str, Output] = {output.id: output for output in outputs}
        self._paths = {name: folder / f"{number}.tif" for number, name in enumerate(self.outputs)}
        self._width = tile.width
        self._files: dict[str, DatasetWriter] = {}
        for name, output in self.outputs.items():
            self._files[name] = rasterio.open(
                self._paths[name],
                "w",
                driver="GTiff",
                width=tile.width,
                height=tile.height,
                count=output.bands,
                dtype=output.dtype,
                crs=f"EPSG:{tile.epsg}",
                transform=tile.transform,
                nodata=output.nodata_value,
                interleave="band",
                bigtiff="IF_SAFER",
            )

    def write(self, first_row: int, values: Mapping[str, NDArray[Any]]) -> None:
        """Write a block of rows: (bands, rows, columns) by output id."""
        for name, file in self._files.items():
            file.write(values[name], window=Window(0, first_row, self._width, values[name].shape[1]))

    def write_zeros(self) -> None:
        """Write outputs without data: GDAL would give pixels that nobody writes the no-data value."""
        for file in self._files.values():
            for _, window in file.block_windows():
                file.write(np.zeros((file.count, window.height, window.width), file.dtypes[0]), window=window)

    def close(self) -> None:
        """Finish writing."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def blocks(self, name: str, height: int, width: int) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Yield an output in blocks: first row, first column, and (bands, rows, columns). Close first."""
        with rasterio.open(self._paths[name]) as dataset:
            for row in range(0, dataset.height, height):
                for column in range(0, dataset.width, width):
                    yield row, column, dataset.read(window=Window(column, row, width, height))

    def encode(self, name: str, driver: str, **options: Any) -> bytes:
        """Return an output in a format of GDAL's, with its creation options. Close first."""
        target = self._paths[name].with_suffix(".encoded")
        copy(self._paths[name], target, driver=driver, **options)
        return target.read_bytes()

    def export(self, cog: CogParameters | None) -> dict[str, Path]:
        """Return the path of each output's final file: a GeoTIFF, or a cloud optimised one by `cog`. Close first."""
        return {name: self._exported(name, cog) for name in self.outputs}

    def _exported(self, name: str, cog: CogParameters | None) -> Path:
        source = self._paths[name]
        target = source.with_suffix(".final.tif")
        predictor = 3 if self.outputs[name].sample_type == "FLOAT32" else 2
        if cog is None:
            copy(source, target, driver="GTiff", COMPRESS="DEFLATE", PREDICTOR=predictor, BIGTIFF="IF_SAFER")
        else:
            _write_cog(source, target, cog, predictor if cog.use_predictor else 1)
        source.unlink()
        return target


def _write_cog(source: Path, target: Path, cog: CogParameters, predictor: int) -> None:
    """Copy with its overviews ahead of the data: cloud optimised, and with oblong blocks as the COG driver has not."""
    with rasterio.open(source, "r+") as dataset:
        size = (dataset.width, dataset.height)
        sides = (block_size(cog.blockxsize, size), block_size(cog.blockysize, size))
        block_bytes = math.prod(sides) * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
        levels = overview_levels(size, cog)
        if levels:
            dataset.build_overviews(levels, _OVERVIEW_RESAMPLING[cog.resampling_algorithm])
    copy(
        source,
        target,
        driver="GTiff",
        COMPRESS="DEFLATE",
        ZLEVEL=_DEFLATE_LEVEL,
        PREDICTOR=predictor,
        TILED="YES",
        BLOCKXSIZE=sides[0],
        BLOCKYSIZE=sides[1],
        INTERLEAVE="PIXEL" if block_bytes <= _LARGEST_BLOCK_BYTES else "BAND",
        COPY_SRC_OVERVIEWS="YES",
        BIGTIFF="IF_SAFER",
    )


def block_size(asked: int, size: tuple[int, int]) -> int:
    """Return the block size: as asked, but no larger than the raster's longer side (rounded up to a multiple of 16)."""
    return min(asked, -(-max(size) // 16) * 16)


def overview_levels(size: tuple[int, int], cog: CogParameters) -> list[int]:
    """Return the decimations of the overviews, ascending as a cloud optimised GeoTIFF has them.

    As given, else powers of two until neither side exceeds `overviewMinSize`, which defaults to the smaller block side
    (documentation of `cogParameters`, which refers to gdaladdo's `levels` and `minsize`; GDAL, apps/gdaladdo.cpp).
    """
    if cog.overview_levels is not None:
        return sorted(set(cog.overview_levels))
    least = cog.overview_min_size or min(cog.blockxsize, cog.blockysize)
    levels = []
    factor = 1
    while -(-max(size) // factor) > least:
        factor *= 2
        levels.append(factor)
    return levels
