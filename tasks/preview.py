"""A look at what a script makes, before it is ordered: one small window through the Process API, as a picture.

Where the window lies, what is asked for and how the picture is made are pure; one function talks to the service.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import MemoryFile
from sentinelhub.constants import RequestType
from sentinelhub.download import DownloadRequest, SentinelHubDownloadClient
from shapely.geometry.base import BaseGeometry

from tasks.errors import InvalidInput, ServiceError
from tasks.evalscript import Output, Script
from tasks.grid import Tile
from tasks.service import call

LONLAT = 4326
MAX_PIXELS = 2500
"""Columns, and rows, of an image of the Process API (Sentinel Hub, "Process API", output)."""
PICTURE_BANDS = (1, 3, 4)
"""Numbers of bands that are a picture as they stand: grey, colours, colours and opacity."""
PERCENTILES = (2, 98)
"""Of the valid values that are shown: what is black, and what is white."""
EPSG_URL = "http://www.opengis.net/def/crs/EPSG/0/"
PNG, TIFF = "image/png", "image/tiff"
SPENT_HEADER = "x-processingunits-spent"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Process API gave.

    Attributes:
        content: the image, encoded as it was asked for.
        spent_pu: what the service says that it cost, processing units; None when it does not say.
    """

    content: bytes
    spent_pu: float | None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that a person can look at.

    Attributes:
        png: encoded.
        how: how it was made of the output, a sentence's part.
        values: least and greatest valid value of what it shows, as the script gave them; None without a valid one.
        valid_share: of the pixels, 0 to 1; the others are transparent.
    """

    png: bytes
    how: str
    values: tuple[float, float] | None
    valid_share: float


def chosen_output(script: Script, name: str | None) -> Output:
    """Give the output of that name; without one ``default``, or else the first.

    Raises:
        InvalidInput: the script has no such output.
    """
    names = [output for output, _, _ in script.outputs]
    if name is not None and name not in names:
        raise InvalidInput(f"The script has no output '{name}'; choose one of {', '.join(names)}.")
    wanted = name or ("default" if "default" in names else names[0])
    return script.outputs[names.index(wanted)]


def tile_at(tiles: list[Tile], lonlat: tuple[float, float]) -> Tile:
    """Give the tile that a point lies in, or else the nearest; the first by name where several hold it."""

    def distance_m(tile: Tile) -> float:
        x, y = _place(tile, lonlat)
        min_x, min_y, max_x, max_y = tile.bounds
        distance = math.hypot(max(min_x - x, x - max_x, 0), max(min_y - y, y - max_y, 0))
        return distance if math.isfinite(distance) else math.inf

    return min(tiles, key=lambda tile: (distance_m(tile), tile.name))


def window_of(tile: Tile, area: BaseGeometry, lonlat: tuple[float, float], size: int) -> Tile:
    """Give the raster around a point on the tile's own pixels, so that it shows what Batch would deliver.

    It may reach into the next tiles, but leaves the area by less than a pixel.

    Args:
        tile: whose CRS and pixels count.
        area: in longitude and latitude; what of it is far away does not matter.
        lonlat: the middle, moved where the window would leave the area's bounding box.
        size: columns and rows at most.
    """
    corner = ~tile.transform
    to_crs = Transformer.from_crs(LONLAT, tile.epsg, always_xy=True)
    column, row = corner * _place(tile, lonlat)
    left, bottom, right, top = to_crs.transform_bounds(*area.bounds)
    (west, north), (east, south) = corner * (left, top), corner * (right, bottom)
    first_column, width = _span(column, west, east, size)
    first_row, height = _span(row, north, south, size)
    min_x, max_y = tile.transform * (first_column, first_row)
    max_x, min_y = tile.transform * (first_column + width, first_row + height)
    return Tile("window", tile.epsg, (min_x, min_y, max_x, max_y), width, height)


def window_request(batch_request: dict[str, Any], window: Tile, output: Output, order: str) -> dict[str, Any]:
    """Give the body for the Process API that asks for one output of a window, of what the batch request asks.

    Args:
        batch_request: the ``processRequest``, see `tasks.batch.process_request`.
        window: the raster.
        output: as PNG where it is a picture as it stands, else as TIFF.
        order: of the scenes in a mosaic, in the service's words.
    """
    identifier, _, _ = output
    data = [
        {**one, "dataFilter": {**one["dataFilter"], "mosaickingOrder": order}} for one in batch_request["input"]["data"]
    ]
    place = {"bbox": list(window.bounds), "properties": {"crs": f"{EPSG_URL}{window.epsg}"}}
    response = {"identifier": identifier, "format": {"type": media_type(output)}}
    return {
        "input": {"bounds": place, "data": data},
        "output": {"width": window.width, "height": window.height, "responses": [response]},
        "evalscript": batch_request["evalscript"],
    }


def media_type(output: Output) -> str:
    """Give the format to ask for: PNG where the output is a picture as it stands."""
    _, bands, sample_type = output
    return PNG if sample_type in {"AUTO", "UINT8"} and bands in PICTURE_BANDS else TIFF


def fetch(client: SentinelHubDownloadClient, body: dict[str, Any]) -> Answer:
    """Send the request, once: it costs.

    Raises:
        InvalidInput: the service refuses it; an error of the script comes with its line.
        AccessDenied: the credentials are wrong, or the account has no processing units left.
        Unavailable: no answer now.
    """
    (response,) = body["output"]["responses"]
    request = DownloadRequest(
        url=f"{client.config.sh_base_url}/api/v1/process",
        request_type=RequestType.POST,
        post_values=body,
        headers={"Content-Type": "application/json", "Accept": response["format"]["type"]},
        use_session=True,
    )
    (answer,) = call(client.download, [request], decode_data=False)
    headers = {name.lower(): value for name, value in answer.headers.items()}
    spent = headers.get(SPENT_HEADER)
    return Answer(answer.content, None if spent is None else float(spent))


def picture_of(content: bytes, output: Output) -> Picture:
    """Make a picture of what the service gave.

    A PNG stays as it is. Of a TIFF with up to two bands the first is shown in grey, of one with three or four the first
    three as red, green and blue, of more the middle one: they are a series. Values are stretched between PERCENTILES,
    the same for all colours; pixels without a valid value are transparent.

    Raises:
        ServiceError: it is no image.
    """
    values, valid = _read(content)
    if media_type(output) == PNG:
        return Picture(content, "as the service drew it", _range(values[:3], valid[:3]), _share(valid))
    shown, named = _shown_bands(len(values))
    values, valid = values[shown], valid[shown]
    if not valid.any():
        return Picture(_png(np.zeros(values.shape, np.uint8), valid), f"{named}, without a valid value", None, 0.0)
    black, white = np.percentile(values[valid], PERCENTILES)
    from_to = f"{number_text(black)} black and {number_text(white)} white"
    how = f"{named}, {from_to} (percentiles {PERCENTILES[0]} and {PERCENTILES[1]})"
    return Picture(_png(_stretched(values, black, white), valid), how, _range(values, valid), _share(valid))


def number_text(value: float) -> str:
    """Write a number with four digits at least, and without an exponent where it is large."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _place(tile: Tile, lonlat: tuple[float, float]) -> tuple[float, float]:
    x, y = Transformer.from_crs(LONLAT, tile.epsg, always_xy=True).transform(*lonlat)
    return x, y


def _span(middle: float, low: float, high: float, size: int) -> tuple[int, int]:
    """First pixel and number of pixels around a place, within two bounds; a bound that is not finite is none."""
    bounded = math.isfinite(low) and math.isfinite(high)
    first, last = (math.floor(low + 1e-6), math.ceil(high - 1e-6)) if bounded else (-math.inf, math.inf)
    count = int(min(size, last - first))
    return int(min(max(round(middle - count / 2), first), last - count)), count


def _read(content: bytes) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values and their validity, both (band, row, column)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with MemoryFile(content) as file, file.open() as dataset:
                values = dataset.read(masked=True)
    except RasterioIOError as error:
        raise ServiceError(
            f"Sentinel Hub gave no image but {len(content)} bytes that start {content[:40]!r}."
        ) from error
    return values.data, ~np.ma.getmaskarray(values) & np.isfinite(values.data)


def _shown_bands(count: int) -> tuple[list[int], str]:
    if count <= 2:
        return [0], "in grey" if count == 1 else "the first of them in grey"
    if count <= 4:
        return [0, 1, 2], "the first three as red, green, blue"
    return [count // 2], f"the middle one, number {count // 2 + 1}, in grey"


def _stretched(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    if white <= black:
        return np.full(values.shape, 128, np.uint8)
    scaled = (np.nan_to_num(values.astype(np.float64)) - black) / (white - black)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _range(values: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[float, float] | None:
    kept = values[valid]
    return (float(kept.min()), float(kept.max())) if kept.size else None


def _share(valid: NDArray[np.bool_]) -> float:
    return float(valid.all(axis=0).mean())


def _png(colours: NDArray[np.uint8], valid: NDArray[np.bool_]) -> bytes:
    """Encode one band or three, with opacity where all are valid."""
    opacity = np.where(valid.all(axis=0), 255, 0).astype(np.uint8)
    bands = np.concatenate([colours, opacity[np.newaxis]])
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile() as file:
            with file.open(driver="PNG", width=width, height=height, count=count, dtype="uint8") as dataset:
                dataset.write(bands)
            return bytes(file.read())
