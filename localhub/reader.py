"""Reading a scene's bands onto a tile's grid.

Where the file's grid and the tile's coincide (same CRS and pixel size, offset by whole pixels) pixels are copied;
otherwise GDAL warps them. The warp is always laid out for the whole tile, so reading it window by window gives the
same pixels as reading it at once. Overviews are never used: NEAREST returns values that stand in the file.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.session import AWSSession
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from localhub.archive import DATA_MASK, ArchiveError, Scene
from localhub.objectstore import Access
from tasks.grid import Tile

ResamplingName = Literal["NEAREST", "BILINEAR", "BICUBIC"]
"""The service's names of the ways to resample."""

_RESAMPLINGS: dict[str, Resampling] = {
    "NEAREST": Resampling.nearest,
    "BILINEAR": Resampling.bilinear,
    "BICUBIC": Resampling.cubic,
}
_NEVER_MIXED = frozenset({DATA_MASK, "SCL", "CLM"})
"""Bands of classes: a mean of two classes is a third one, so they are read by NEAREST whatever is asked."""

_ALIGNMENT_TOLERANCE_PX = 1e-3
"""Grids whose corners differ by less coincide: far below what any resampling could show."""

_GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""No listing of the folder for side-car files at each opening."""
_BUCKET_OPTIONS = {"GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "0.5", "GDAL_HTTP_TIMEOUT": "60"}


def read_band(
    scene: Scene,
    band: str,
    tile: Tile,
    window: Window | None = None,
    *,
    resampling: ResamplingName = "NEAREST",
) -> NDArray[Any]:
    """The band's stored values (DN) on the tile's grid, 0 where the scene has no data.

    Args:
        scene: a scene of the archive.
        band: a key of its assets, or `dataMask`.
        tile: the grid to read onto.
        window: the part of the tile to read, whole pixels; all of it by default.
        resampling: how to warp; SCL, CLM and dataMask are read by NEAREST in any case.

    Returns:
        (height, width) of the window, in the file's dtype; `dataMask` as uint8.

    Raises:
        ArchiveError: the scene has no such band, or its file cannot be read.
        ValueError: the window leaves the tile, or the resampling is unknown.
    """
    if band == DATA_MASK:
        return read_data_mask(scene, tile, window)
    return _read(scene, band, tile, window, _resampling(band, resampling), mask=False)


def read_data_mask(scene: Scene, tile: Tile, window: Window | None = None) -> NDArray[np.uint8]:
    """1 where the scene has data on the tile's grid, else 0; shape (height, width) of the window.

    The scene's `dataMask` asset says so; without one, pixels inside the file of B02 (or of the first asset) whose
    value is not that file's nodata value.

    Raises:
        ArchiveError: a file cannot be read.
        ValueError: the window leaves the tile.
    """
    if DATA_MASK in scene.assets:
        stored = _read(scene, DATA_MASK, tile, window, Resampling.nearest, mask=False)
        return _ones(stored)
    witness = "B02" if "B02" in scene.assets else next(iter(scene.assets))
    return _read(scene, witness, tile, window, Resampling.nearest, mask=True)


def _resampling(band: str, name: str) -> Resampling:
    if name not in _RESAMPLINGS:
        raise ValueError(f"Resampling {name!r} is not known. Choose one of: {', '.join(_RESAMPLINGS)}.")
    return Resampling.nearest if band in _NEVER_MIXED else _RESAMPLINGS[name]


def _read(
    scene: Scene, band: str, tile: Tile, window: Window | None, resampling: Resampling, *, mask: bool
) -> NDArray[Any]:
    rows, columns = _checked(window, tile)
    with _opened(scene, band) as dataset:
        origin = _whole_pixel_origin(dataset, tile)
        if origin is not None:
            return _copy(dataset, _shift(rows, origin[0]), _shift(columns, origin[1]), mask=mask)
        return _warp(dataset, tile, Window.from_slices(rows, columns), resampling, mask=mask)


def _checked(window: Window | None, tile: Tile) -> tuple[slice, slice]:
    """Rows and columns of the window."""
    if window is None:
        return slice(0, tile.height), slice(0, tile.width)
    rows, columns = (slice(int(part.start), int(part.stop)) for part in window.toslices())
    if not (0 <= rows.start < rows.stop <= tile.height and 0 <= columns.start < columns.stop <= tile.width):
        raise ValueError(f"{window} leaves tile {tile.name} of {tile.height} rows and {tile.width} columns.")
    return rows, columns


@contextmanager
def _opened(scene: Scene, band: str) -> Iterator[DatasetReader]:
    if band not in scene.assets:
        held = ", ".join(sorted(scene.assets))
        raise ArchiveError(f"Scene {scene.id} of {scene.collection} has no band {band}. It has: {held}.")
    path = scene.assets[band]
    try:
        with _environment(scene.access), rasterio.open(path) as dataset:
            if dataset.crs is None:
                raise ArchiveError(f"Band {band} of scene {scene.id} has no CRS: {path}. Write it with its CRS.")
            yield dataset
    except RasterioError as error:
        raise ArchiveError(f"Band {band} of scene {scene.id} cannot be read from {path}: {error}") from error


def _environment(access: Access | None) -> rasterio.Env:
    """GDAL's options for the time of an opening: keys stand in no environment variable and outlive no reading."""
    if access is None:
        return rasterio.Env(**_GDAL_OPTIONS)
    return rasterio.Env(_session(access), **_GDAL_OPTIONS, **_BUCKET_OPTIONS, **_endpoint_options(access))


@lru_cache(maxsize=8)
def _session(access: Access) -> AWSSession:
    host = urlsplit(access.endpoint_url).netloc if access.endpoint_url else None
    return AWSSession(
        aws_access_key_id=access.key,
        aws_secret_access_key=access.secret,
        region_name=access.region or "us-east-1",
        endpoint_url=host,
    )


def _endpoint_options(access: Access) -> dict[str, str]:
    """Stores other than AWS know buckets by path, not by host name (GDAL, virtual file systems, ``/vsis3/``)."""
    if access.endpoint_url is None:
        return {}
    secure = urlsplit(access.endpoint_url).scheme == "https"
    return {"AWS_HTTPS": "YES" if secure else "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}


def _whole_pixel_origin(dataset: DatasetReader, tile: Tile) -> tuple[int, int] | None:
    """Row and column in the file of the tile's upper-left pixel, if the two grids coincide."""
    if not dataset.transform.is_rectilinear or dataset.crs.to_epsg() != tile.epsg:
        return None
    min_x, min_y, max_x, max_y = tile.bounds
    left, top = ~dataset.transform * (min_x, max_y)
    right, bottom = ~dataset.transform * (max_x, min_y)
    column, row = round(left), round(top)
    misfit = max(abs(left - column), abs(top - row), abs(right - column - tile.width), abs(bottom - row - tile.height))
    return (row, column) if misfit < _ALIGNMENT_TOLERANCE_PX else None


def _shift(part: slice, offset: int) -> slice:
    return slice(part.start + offset, part.stop + offset)


def _copy(dataset: DatasetReader, rows: slice, columns: slice, *, mask: bool) -> NDArray[Any]:
    """Pixels as they stand; rows and columns may leave the file."""
    dtype = np.dtype(np.uint8 if mask else dataset.dtypes[0])
    result = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype)
    inside_rows, inside_columns = _clip(rows, dataset.height), _clip(columns, dataset.width)
    if inside_rows.start < inside_rows.stop and inside_columns.start < inside_columns.stop:
        part = Window.from_slices(inside_rows, inside_columns)
        values = _ones(dataset.read_masks(1, window=part)) if mask else _inside_values(dataset, part)
        result[_shift(inside_rows, -rows.start), _shift(inside_columns, -columns.start)] = values
    return result


def _clip(part: slice, size: int) -> slice:
    return slice(max(part.start, 0), min(part.stop, size))


def _ones(values: NDArray[Any]) -> NDArray[np.uint8]:
    ones: NDArray[np.uint8] = (values != 0).astype(np.uint8)
    return ones


def _inside_values(dataset: DatasetReader, part: Window) -> NDArray[Any]:
    """Values inside the file, its nodata value replaced by 0."""
    values: NDArray[Any] = dataset.read(1, window=part)
    if dataset.nodata:
        values[np.isnan(values) if np.isnan(dataset.nodata) else values == dataset.nodata] = 0
    return values


def _warp(dataset: DatasetReader, tile: Tile, window: Window, resampling: Resampling, *, mask: bool) -> NDArray[Any]:
    """Values by GDAL's warper; its alpha band tells data from no data, and no data is 0 in both."""
    with WarpedVRT(
        dataset,
        crs=f"EPSG:{tile.epsg}",
        transform=tile.transform,
        width=tile.width,
        height=tile.height,
        resampling=resampling,
        src_nodata=dataset.nodata,
        add_alpha=True,
        **_scale(dataset, tile),
    ) as warped:
        values: NDArray[Any] = warped.read(2 if mask else 1, window=window)
    return _ones(values) if mask else values


def _scale(dataset: DatasetReader, tile: Tile) -> dict[str, str]:
    """Warp options with the ratio of the pixel sizes at the tile's centre, on which the width of the kernels depends.

    GDAL else estimates it block by block, from whatever part of the file a block meets: wrong by some per cent, and
    different from block to block, at the file's edges (GDAL, ``GDALWarpOptions``, XSCALE and YSCALE). It may where the
    file's CRS does not reach the tile's centre.
    """
    min_x, min_y, max_x, max_y = tile.bounds
    x_step, y_step = tile.resolution
    x, y = (min_x + max_x) / 2, (min_y + max_y) / 2
    steps = [x - x_step / 2, x + x_step / 2, x, x], [y, y, y - y_step / 2, y + y_step / 2]
    xs, ys = _to_file(tile.epsg, dataset.crs.to_wkt()).transform(*steps)
    file_x, file_y = dataset.res
    across, along = (math.hypot((xs[k + 1] - xs[k]) / file_x, (ys[k + 1] - ys[k]) / file_y) for k in (0, 2))
    if not (0 < across < math.inf and 0 < along < math.inf):
        return {}
    return {"XSCALE": repr(1 / across), "YSCALE": repr(1 / along)}


@lru_cache(maxsize=64)
def _to_file(tile_epsg: int, file_crs: str) -> Transformer:
    return Transformer.from_crs(tile_epsg, file_crs, always_xy=True)
