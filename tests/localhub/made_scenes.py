"""Scenes of any values, and GDAL's warp of their files: the oracle for what localhub reads of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.warp import reproject
from shapely.geometry import mapping

from tasks.grid import Tile, lonlat_outline

METHODS = {"NEAREST": Resampling.nearest, "BILINEAR": Resampling.bilinear, "BICUBIC": Resampling.cubic}


def grid(epsg: int, west: float, north: float, resolution: float, columns: int, rows: int, name: str = "made") -> Tile:
    """A raster from its upper-left corner."""
    return Tile(name, epsg, (west, north - rows * resolution, west + columns * resolution, north), columns, rows)


def write_scene(
    folder: Path,
    name: str,
    bands: Mapping[str, NDArray[Any]],
    place: Tile,
    *,
    collection: str = "sentinel-2-l1c",
    time: str = "2020-06-01T10:00:00Z",
    nodata: float | None = 0,
    asset: Mapping[str, Any] | None = None,
    **properties: Any,
) -> None:
    """Write a scene's files, all over the same place, and its STAC item; `asset` is told of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    for band, values in bands.items():
        _write_band(folder / f"{name}_{band}.tif", values, place, nodata)
    item = {
        "type": "Feature",
        "id": name,
        "collection": collection,
        "geometry": mapping(lonlat_outline(place)),
        "properties": {"datetime": time, **properties},
        "assets": {band: {"href": f"./{name}_{band}.tif", **(asset or {})} for band in bands},
    }
    (folder / f"{name}.json").write_text(json.dumps(item))


def _write_band(path: Path, values: NDArray[Any], place: Tile, nodata: float | None) -> None:
    rows, columns = values.shape
    west, south, east, north = place.bounds
    transform = rasterio.transform.from_bounds(west, south, east, north, columns, rows)
    profile = {"driver": "GTiff", "width": columns, "height": rows, "count": 1, "dtype": values.dtype}
    with rasterio.open(path, "w", crs=f"EPSG:{place.epsg}", transform=transform, nodata=nodata, **profile) as dataset:
        dataset.write(values, 1)


def warped(path: Path | str, place: Tile, method: Resampling, **nodata: float) -> NDArray[Any]:
    """What GDAL makes of a whole file in memory on another grid."""
    with rasterio.open(path) as dataset:
        result = np.zeros((place.height, place.width), dataset.dtypes[0])
        reproject(
            dataset.read(1),
            result,
            src_transform=dataset.transform,
            src_crs=dataset.crs,
            dst_transform=place.transform,
            dst_crs=f"EPSG:{place.epsg}",
            resampling=method,
            **nodata,
            **_scales(dataset.res, str(dataset.crs), place),
        )
    return result


def _scales(file_resolution: tuple[float, float], file_crs: str, place: Tile) -> dict[str, float]:
    """File's pixel over the tile's, measured in the file's CRS at the middle of the tile."""
    x, y = (place.bounds[0] + place.bounds[2]) / 2, (place.bounds[1] + place.bounds[3]) / 2
    dx, dy = place.resolution
    change = Transformer.from_crs(place.epsg, file_crs, always_xy=True).transform
    west, east, south, north = (
        np.array(change(*p)) for p in ((x - dx / 2, y), (x + dx / 2, y), (x, y - dy / 2), (x, y + dy / 2))
    )
    across, along = (np.linalg.norm((a - b) / file_resolution) for a, b in ((west, east), (south, north)))
    return {"XSCALE": 1 / across, "YSCALE": 1 / along}
