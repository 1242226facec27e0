"""What a group holds before any pixel does: metadata and coordinate arrays, as the bytes of its objects.

Formats: Zarr storage specification version 2. Names of attributes: Attribute Convention for Data Discovery 1.3, which
the documentation's `date_modified` is from; Climate and Forecast Conventions for the coordinates; `_CRS` as GDAL's Zarr
driver reads it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from localhub.zarroutput.compression import DEFAULT, encoded
from localhub.zarroutput.frame import Frame
from localhub.zarroutput.parameters import COORDINATES, ArrayLayout
from tasks.grid import Tile, lonlat_outline
from tasks.grid.coordinates import crs_of

ATTRIBUTES: Final = ".zattrs"
_DIMENSIONS = "_ARRAY_DIMENSIONS"
_EPOCH = "seconds since 1970-01-01 00:00:00"
_AXES: Final = {
    True: {"y": ("latitude", "degrees_north"), "x": ("longitude", "degrees_east")},
    False: {"y": ("projection_y_coordinate", "m"), "x": ("projection_x_coordinate", "m")},
}
"""Standard name and unit of a coordinate, by whether the CRS is geographic."""


@dataclass(frozen=True, slots=True)
class Period:
    """The time range of a request, both ends included, aware."""

    start: datetime
    end: datetime


def group_objects(
    frame: Frame,
    layouts: Iterable[ArrayLayout],
    period: Period,
    attributes: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return the objects of a group by key: metadata, also consolidated, and coordinates; the attributes come first."""
    metadata = {ATTRIBUTES: dict(attributes), ".zgroup": {"zarr_format": 2}}
    chunks = {}
    for name, values in _coordinates(frame, period).items():
        metadata |= _array_metadata(name, _coordinate(values), {_DIMENSIONS: [name]} | _meaning(name, frame.epsg))
        chunks[f"{name}/0"] = encoded(values, DEFAULT)
    for layout in layouts:
        own = {_DIMENSIONS: list(COORDINATES), "_CRS": {"url": _crs_url(frame.epsg)}}
        metadata |= _array_metadata(layout.name, _data(layout, frame), own | dict(layout.custom_attributes))
    consolidated = {"zarr_consolidated_format": 1, "metadata": dict(metadata)}
    return {key: _json(value) for key, value in metadata.items()} | chunks | {".zmetadata": _json(consolidated)}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=4).encode()


def _coordinates(frame: Frame, period: Period) -> dict[str, NDArray[Any]]:
    time = np.array([int(period.start.timestamp())], "<i8")
    return {"time": time, "y": frame.y.astype("<f8"), "x": frame.x.astype("<f8")}


def _array_metadata(name: str, array: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    common = {"zarr_format": 2, "order": "C", "filters": None, "dimension_separator": "."}
    return {f"{name}/.zarray": {**common, **array}, f"{name}/.zattrs": dict(attributes)}


def _coordinate(values: NDArray[Any]) -> dict[str, Any]:
    """Describe a coordinate array of one chunk. It has no fill value, since readers would take 0 for missing."""
    return {
        "shape": list(values.shape),
        "chunks": list(values.shape),
        "dtype": values.dtype.str,
        "compressor": dict(DEFAULT),
        "fill_value": None,
    }


def _data(layout: ArrayLayout, frame: Frame) -> dict[str, Any]:
    return {
        "shape": [1, frame.height, frame.width],
        "chunks": [1, layout.chunk_height, layout.chunk_width],
        "dtype": layout.dtype,
        "compressor": None if layout.compressor is None else dict(layout.compressor),
        "fill_value": layout.fill_value,
    }


def _meaning(name: str, epsg: int) -> dict[str, str]:
    if name == "time":
        return {"standard_name": "time", "units": _EPOCH, "calendar": "proleptic_gregorian"}
    standard_name, units = _AXES[crs_of(epsg).is_geographic][name]
    return {"standard_name": standard_name, "units": units}


def _crs_url(epsg: int) -> str:
    return f"http://www.opengis.net/def/crs/EPSG/0/{epsg}"


def group_attributes(frame: Frame, period: Period, request_id: str, now: datetime) -> dict[str, Any]:
    """Return the attributes that a group has by default."""
    outline = Tile("", frame.epsg, frame.bounds, frame.width, frame.height)
    west, south, east, north = lonlat_outline(outline).bounds
    return {
        "id": request_id,
        "date_modified": _iso(now),
        "time_coverage_start": _iso(period.start),
        "time_coverage_end": _iso(period.end),
        "geospatial_lat_min": south,
        "geospatial_lat_max": north,
        "geospatial_lon_min": west,
        "geospatial_lon_max": east,
    }


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
