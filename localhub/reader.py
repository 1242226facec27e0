"""Reading a scene's bands onto a tile's grid.

Where the file's grid and the tile's coincide (same CRS and pixel size, offset by whole pixels) pixels are copied;
otherwise GDAL warps them. The warp is always laid out for the whole tile, so reading it window by window gives the
same pixels as reading it at once. Overviews are never used: NEAREST returns values that stand in the file. NaN is no
data in any file, as in the service's own collections of users ("Bring Your Own COG"), and 0 in Sentinel-2's optical
bands, whether or not their files say so (Sentinel-2 products specification, special value NODATA).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
from rasterio.session import AWSSession, DummySession
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from localhub.archive import DATA_MASK, ArchiveError, Scene
from localhub.objectstore import Access
from localhub.sentinel2 import OPTICAL_BANDS
from tasks.grid import Tile

ResamplingName = Literal["NEAREST", "BILINEAR", "BICUBIC"]
"""The service's names of the ways to resample."""

_RESAMPLINGS: dict[str, Resampling] = {
    "NEAREST": Resampling.nearest,
    "BILINEAR": Resampling.bilinear,
    "BICUBIC": Resampling.cubic,
}
_CLASSES = frozenset({"SCL", "CLM"})
_ANGLES = frozenset({"sunAzimuthAngles", "sunZenithAngles", "viewAzimuthMean", "viewZenithMean"})
_NEVER_MIXED = frozenset({DATA_MASK}) | _CLASSES | _ANGLES
"""Bands that are read by NEAREST whatever is asked: a mean of two classes is a third one, that of 359 and 1 degrees is
180, and the service's pages on Sentinel-2 say so of angles."""

_ALIGNMENT_TOLERANCE_PX = 1e-3
"""Grids whose corners differ by less coincide: far below what any resampling could show."""
_SAME_SIZE = 0.01
"""Pixels whose sizes differ by this share or less are of one resolution, as those of neighbouring UTM zones are."""

_GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""No listing of the folder for side-car files at each opening."""
_BUCKET_OPTIONS = {"GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "0.5", "GDAL_HTTP_TIMEOUT": "60"}


@dataclass(frozen=True, slots=True)
class Methods:
    """How to warp, by what becomes of the file's pixel size; at the same size NEAREST, which both are about."""

    upsampling: ResamplingName = "NEAREST"
    """Where the tile's pixels are smaller than the file's."""
    downsampling: ResamplingName = "NEAREST"
    """Where they are larger."""

    def __post_init__(self) -> None:
        for name in (self.upsampling, self.downsampling):
            if name not in _RESAMPLINGS:
                raise ValueError(f"Resampling {name!r} is not known. Choose one of: {', '.join(_RESAMPLINGS)}.")

    def at(self, size: float) -> Resampling:
        """Return the method where a pixel of the tile is `size` times one of the file."""
        if abs(size - 1) <= _SAME_SIZE:
            return Resampling.nearest
        return _RESAMPLINGS[self.downsampling if size > 1 else self.upsampling]


_NEAREST = Methods()


def read_band(
    scene: Scene, band: str, tile: Tile, window: Window | None = None, methods: Methods = _NEAREST
) -> NDArray[Any]:
    """The band's stored values (DN) on the tile's grid, 0 where the scene has no data.

    Args:
        scene: a scene of the archive.
        band: a key of its assets, or `dataMask`.
        tile: the grid to read onto.
        window: the part of the tile to read, whole pixels; all of it by default.
        methods: how to warp; classes, angles and dataMask are read by NEAREST in any case.

    Returns:
        (height, width) of the window, in the file's dtype; `dataMask` as uint8.

    Raises:
        ArchiveError: the scene has no such band, or its file cannot be read.
        ValueError: the window leaves the tile.
    """
    if band == DATA_MASK:
        return read_data_mask(scene, tile, window)
    return _read(scene, band, tile, window, _NEAREST if band in _NEVER_MIXED else methods, mask=False)


def read_data_mask(scene: Scene, tile: Tile, window: Window | None = None) -> NDArray[np.uint8]:
    """1 where the scene has data on the tile's grid, else 0; shape (height, width) of the window.

    The scene's `dataMask` asset says so; without one, pixels inside the file of B02 (or of another optical band, or of
    the first asset) whose value is not that file's nodata value.

    Raises:
        ArchiveError: a file cannot be read.
        ValueError: the window leaves the tile.
    """
    if DATA_MASK in scene.assets:
        stored = _read(scene, DATA_MASK, tile, window, _NEAREST, mask=False)
        return _ones(stored)
    return _read(scene, _witness(scene), tile, window, _NEAREST, mask=True)


@contextmanager
def mask_held(scene: Scene) -> Iterator[None]:
    """Keep the band open that stands in for a missing `dataMask`: what was decoded for the mask serves its values, too.

    Raises:
        ArchiveError: the file cannot be read.
    """
    with nullcontext() if DATA_MASK in scene.assets else _opened(scene, _witness(scene)):
        yield


def _witness(scene: Scene) -> str:
    optical = (band for band in scene.assets if band in OPTICAL_BANDS)
    return "B02" if "B02" in scene.assets else next(optical, next(iter(scene.assets)))


def _read(scene: Scene, band: str, tile: Tile, window: Window | None, methods: Methods, *, mask: bool) -> NDArray[Any]:
    rows, columns = _checked(window, tile)
    with _opened(scene, band) as dataset:
        nodata = _nodata(dataset, scene.collection, band)
        origin = _whole_pixel_origin(dataset, tile)
        if origin is not None:
            return _copy(dataset, _shift(rows, origin[0]), _shift(columns, origin[1]), nodata, mask=mask)
        return _warp(dataset, tile, Window.from_slices(rows, columns), methods, nodata, mask=mask)


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
        with _environment(scene.access), rasterio.open(path, sharing=True) as dataset:
            if dataset.crs is None:
                raise ArchiveError(f"Band {band} of scene {scene.id} has no CRS: {path}. Write it with its CRS.")
            yield dataset
    except RasterioError as error:
        raise ArchiveError(f"Band {band} of scene {scene.id} cannot be read from {path}: {error}") from error


def _environment(access: Access | None) -> rasterio.Env:
    """GDAL's options for the time of an opening: keys stand in no environment variable and outlive no reading."""
    if access is None:
        return rasterio.Env(DummySession(), **_GDAL_OPTIONS)  # none of AWS, which takes long to make
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


def _nodata(dataset: DatasetReader, collection: str, band: str) -> float | None:
    """Return the value that stands for no data, also where the file does not say so."""
    if dataset.nodata is not None:
        return float(dataset.nodata)
    if _holds_floats(dataset):
        return math.nan
    return 0.0 if collection.startswith("sentinel-2") and band in OPTICAL_BANDS else None


def _copy(dataset: DatasetReader, rows: slice, columns: slice, nodata: float | None, *, mask: bool) -> NDArray[Any]:
    """Pixels as they stand; rows and columns may leave the file."""
    dtype = np.dtype(np.uint8 if mask else dataset.dtypes[0])
    result = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype)
    inside_rows, inside_columns = _clip(rows, dataset.height), _clip(columns, dataset.width)
    if inside_rows.start < inside_rows.stop and inside_columns.start < inside_columns.stop:
        part = Window.from_slices(inside_rows, inside_columns)
        values = _inside_mask(dataset, part, nodata) if mask else _inside_values(dataset, part)
        result[_shift(inside_rows, -rows.start), _shift(inside_columns, -columns.start)] = values
    return result


def _clip(part: slice, size: int) -> slice:
    return slice(max(part.start, 0), min(part.stop, size))


def _ones(values: NDArray[Any]) -> NDArray[np.uint8]:
    ones: NDArray[np.uint8] = (values != 0).astype(np.uint8)
    return ones


def _inside_mask(dataset: DatasetReader, part: Window, nodata: float | None) -> NDArray[np.uint8]:
    """1 where the file has data, inside of it."""
    valid = dataset.read_masks(1, window=part) != 0
    if _holds_floats(dataset):
        valid &= ~np.isnan(dataset.read(1, window=part))
    elif nodata != dataset.nodata:
        valid &= dataset.read(1, window=part) != nodata
    return _ones(valid)


def _inside_values(dataset: DatasetReader, part: Window) -> NDArray[Any]:
    """Values inside the file, its nodata value and NaN replaced by 0."""
    values: NDArray[Any] = dataset.read(1, window=part)
    if dataset.nodata:
        values[values == dataset.nodata] = 0
    return _without_nan(values)


def _without_nan(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "f":
        values[np.isnan(values)] = 0
    return values


def _holds_floats(dataset: DatasetReader) -> bool:
    return bool(np.dtype(dataset.dtypes[0]).kind == "f")


def _warp(
    dataset: DatasetReader, tile: Tile, window: Window, methods: Methods, nodata: float | None, *, mask: bool
) -> NDArray[Any]:
    """Values by GDAL's warper; its alpha band tells data from no data, and no data is 0 in both."""
    sizes = _pixel_sizes(dataset, tile)
    with WarpedVRT(
        dataset,
        crs=f"EPSG:{tile.epsg}",
        transform=tile.transform,
        width=tile.width,
        height=tile.height,
        resampling=methods.at(min(sizes, default=math.inf)),
        src_nodata=nodata,
        add_alpha=True,
        **{f"{axis}SCALE": repr(1 / size) for axis, size in zip("XY", sizes, strict=False)},
    ) as warped:
        if not mask:
            return _without_nan(warped.read(1, window=window))
        valid = warped.read(2, window=window) != 0
        return _ones(valid & ~np.isnan(warped.read(1, window=window)) if _holds_floats(dataset) else valid)


def _pixel_sizes(dataset: DatasetReader, tile: Tile) -> tuple[float, ...]:
    """Width and height of a pixel at the tile's centre in pixels of the file; nothing where its CRS does not reach.

    The width of the warp's kernels depends on them. GDAL else estimates them block by block, from whatever part of the
    file a block meets: wrong by some per cent, and different from block to block, at the file's edges (GDAL,
    ``GDALWarpOptions``, XSCALE and YSCALE).
    """
    min_x, min_y, max_x, max_y = tile.bounds
    x_step, y_step = tile.resolution
    x, y = (min_x + max_x) / 2, (min_y + max_y) / 2
    steps = [x - x_step / 2, x + x_step / 2, x, x], [y, y, y - y_step / 2, y + y_step / 2]
    xs, ys = _to_file(tile.epsg, dataset.crs.to_wkt()).transform(*steps)
    file_x, file_y = dataset.res
    across, along = (math.hypot((xs[k + 1] - xs[k]) / file_x, (ys[k + 1] - ys[k]) / file_y) for k in (0, 2))
    return (across, along) if 0 < across < math.inf and 0 < along < math.inf else ()


@lru_cache(maxsize=64)
def _to_file(tile_epsg: int, file_crs: str) -> Transformer:
    return Transformer.from_crs(tile_epsg, file_crs, always_xy=True)
