"""The preview: where its window lies, what is asked for, and a picture that is what the script makes."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.io import MemoryFile
from sentinelhub.download import SentinelHubDownloadClient

from localhub.server import LocalHub
from tasks.batch import process_request
from tasks.errors import AccessDenied, InvalidInput, NotYet, ServiceError, Unavailable
from tasks.evalscript import Imagery, Output, Script, load_script
from tasks.grid import Tile, tiles_of_grid
from tasks.plan import Period
from tasks.preview import (
    chosen_output,
    fetch,
    media_type,
    picture_of,
    tile_at,
    window_of,
    window_request,
)
from tasks.service import Service, connect_process
from tests.localhub.watching import set_balance
from tests.tasks.faulty_server import Fault, FaultyServer
from tests.tasks.orbits import NORTH, RESOLUTION_M, WEST, pixels

JUNE = Period.model_validate({"start": "2019-06-01", "end": "2019-06-30"})
AREA = shapely.box(15.795, 46.335, 16.02, 46.475)
TILES = tiles_of_grid(AREA, 4326, 1, 20)
MIDDLE = (15.9075, 46.405)
PLACE = Tile("t", 32633, (0, 0, 100, 100), 10, 10)


def script_of(folder: Path, bands: str, output: str, pixel: str, more: str = "") -> Script:
    path = folder / "script.js"
    path.write_text(
        f"//VERSION=3\nfunction setup() {{ return {{input: {bands}, {more} output: {output}}}; }}\n"
        f"function evaluatePixel(s) {{ return {pixel}; }}\n"
    )
    return load_script(Imagery(evalscript=str(path)), JUNE.start, JUNE.end, 15)


@pytest.fixture
def process(orbits_hub: LocalHub) -> SentinelHubDownloadClient:
    return connect_process(Service(base_url=orbits_hub.base_url))


def body_of(script: Script, window: Tile, output: Output) -> dict[str, Any]:
    request = process_request(None, "sentinel-2-l1c", JUNE.start, JUNE.end, 100, script)
    return window_request(request, window, output, "mostRecent")


def archived(window: Tile) -> NDArray[np.uint16]:
    """What the archive's raster has in a window on its own pixels."""
    min_x, _, _, max_y = window.bounds
    column, row = round((min_x - WEST) / RESOLUTION_M), round((NORTH - max_y) / RESOLUTION_M)
    return pixels()[row : row + window.height, column : column + window.width]


# ---- the window ----


def test_the_window_lies_around_the_point_on_the_pixels_of_the_tile() -> None:
    tile = tile_at(TILES, MIDDLE)
    window = window_of(tile, AREA, MIDDLE, 64)
    assert (window.width, window.height, window.epsg) == (64, 64, 32633)
    assert window.resolution == tile.resolution
    x, y = Transformer.from_crs(4326, 32633, always_xy=True).transform(*MIDDLE)
    min_x, min_y, max_x, max_y = window.bounds
    assert abs((min_x + max_x) / 2 - x) <= 10
    assert abs((min_y + max_y) / 2 - y) <= 10
    assert (min_x - tile.bounds[0]) % 20 == (max_y - tile.bounds[3]) % 20 == 0


@given(
    west=st.floats(-179, 170),
    south=st.floats(-75, 70),
    wide=st.floats(0.001, 6),
    high=st.floats(0.001, 6),
    at=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.integers(1, 2500),
)
def test_a_window_anywhere_holds_its_point_and_leaves_the_area_by_less_than_a_pixel(
    west: float, south: float, wide: float, high: float, at: tuple[float, float], size: int
) -> None:
    area = shapely.box(west, south, west + wide, south + high)
    point = (west + at[0] * wide, south + at[1] * high)
    zone = 32600 + int((point[0] + 180) // 6) + 1
    convert = Transformer.from_crs(4326, zone, always_xy=True)
    x, y = convert.transform(*point)
    tile = Tile(
        "t",
        zone,
        (x // 10_000 * 10_000, y // 10_000 * 10_000, *(v // 10_000 * 10_000 + 10_000 for v in (x, y))),
        500,
        500,
    )
    window = window_of(tile, area, point, size)
    min_x, min_y, max_x, max_y = window.bounds
    assert max(window.width, window.height) <= size
    assert window.resolution == pytest.approx((20, 20))
    assert min_x - 20.01 <= x <= max_x + 20.01
    assert min_y - 20.01 <= y <= max_y + 20.01
    left, bottom, right, top = convert.transform_bounds(*area.bounds)
    assert min_x >= left - 20.01
    assert min_y >= bottom - 20.01
    assert max_x <= right + 20.01
    assert max_y <= top + 20.01


def test_a_small_area_makes_a_small_window() -> None:
    area = shapely.box(15.9, 46.4, 15.901, 46.4005)
    window = window_of(TILES[0], area, (15.9005, 46.40025), 512)
    assert 3 <= window.width <= 6
    assert 2 <= window.height <= 5


def test_the_tile_is_the_one_that_holds_the_point_or_the_nearest() -> None:
    assert {tile_at(TILES, point).name for point in ((15.80, 46.34), (15.8, 46.35))} == {"33TWM_6_6"}
    assert tile_at(TILES, (16.01, 46.47)).name == "33TWM_7_5"
    assert tile_at(TILES, (20.0, 46.47)).name == "33TWM_7_5"


# ---- what is asked for ----


def test_the_output_is_default_or_the_first_or_the_one_that_is_named(tmp_path: Path) -> None:
    script = script_of(tmp_path, "['B02']", "[{id: 'a', bands: 1}, {id: 'default', bands: 3}]", "[1]")
    assert chosen_output(script, None) == ("default", 3, "AUTO")
    assert chosen_output(script, "a") == ("a", 1, "AUTO")
    assert chosen_output(replace(script, outputs=script.outputs[:1]), None) == ("a", 1, "AUTO")
    with pytest.raises(InvalidInput, match="has no output 'b'; choose one of a, default"):
        chosen_output(script, "b")


def test_only_a_picture_is_asked_for_as_png() -> None:
    kinds = [(bands, kind) for bands in (1, 2, 3, 4, 5) for kind in ("AUTO", "UINT8", "UINT16", "FLOAT32")]
    asked = {(bands, kind) for bands, kind in kinds if media_type(("o", bands, kind)) == "image/png"}  # type: ignore[arg-type]
    assert asked == {(bands, kind) for bands in (1, 3, 4) for kind in ("AUTO", "UINT8")}


def test_the_window_is_asked_for_as_the_batch_request_would_be(tmp_path: Path) -> None:
    script = script_of(tmp_path, "['B02']", "{bands: 1}", "[1]")
    request = process_request(None, "sentinel-2-l1c", JUNE.start, JUNE.end, 80, script)
    body = window_request(request, PLACE, script.outputs[0], "leastCC")
    (data,), (batch,) = body["input"]["data"], request["input"]["data"]
    assert data["dataFilter"].pop("mosaickingOrder") == "leastCC"
    assert data == batch
    assert body["evalscript"] == request["evalscript"]
    assert body["input"]["bounds"]["bbox"] == [0, 0, 100, 100]
    assert body["input"]["bounds"]["properties"]["crs"].endswith("/EPSG/0/32633")
    assert body["output"] == {
        "width": 10,
        "height": 10,
        "responses": [{"identifier": "default", "format": {"type": "image/png"}}],
    }


# ---- the picture, through localhub ----


def test_a_picture_of_the_script_is_what_the_script_computes_on_the_archive(
    process: SentinelHubDownloadClient, tmp_path: Path
) -> None:
    units = "[{bands: ['B02', 'B03'], units: 'DN'}]"
    script = script_of(tmp_path, units, "{bands: 3, sampleType: 'UINT8'}", "[s.B02 % 256, s.B03 % 100, 7]")
    window = window_of(tile_at(TILES, MIDDLE), AREA, MIDDLE, 64)
    answer = fetch(process, body_of(script, window, script.outputs[0]))
    picture = picture_of(answer.content, script.outputs[0])
    values = archived(window)
    expected = np.stack([values % 256, values % 100, np.full_like(values, 7)], axis=-1)
    assert (np.round(255 * imread(io.BytesIO(picture.png))) == expected).all()
    assert picture.values == (expected.min(), expected.max())
    assert picture.how == "as the service drew it"
    assert answer.spent_pu == pytest.approx(64 * 64 / 512 / 512 * 2 / 3)


def test_other_values_are_stretched_between_percentiles_and_missing_ones_are_transparent(
    process: SentinelHubDownloadClient, tmp_path: Path
) -> None:
    units = "[{bands: ['B02'], units: 'DN'}]"
    pixel = "[s.B02 > 4500 ? NaN : s.B02 / 1000]"
    script = script_of(tmp_path, units, "{id: 'index', bands: 1, sampleType: 'FLOAT32'}", pixel)
    window = window_of(tile_at(TILES, MIDDLE), AREA, MIDDLE, 64)
    answer = fetch(process, body_of(script, window, script.outputs[0]))
    picture = picture_of(answer.content, script.outputs[0])
    values = archived(window) / np.float32(1000)
    valid = values <= 4.5
    assert 0 < valid.mean() < 1
    black, white = np.percentile(values[valid], (2, 98))
    with MemoryFile(picture.png) as file, file.open() as dataset:
        grey, opacity = dataset.read()
    assert ((opacity == 255) == valid).all()
    assert picture.valid_share == pytest.approx(valid.mean())
    expected = 255 * np.clip((values - black) / (white - black), 0, 1)
    assert np.abs(grey[valid] - expected[valid]).max() <= 1
    assert picture.values == pytest.approx((values[valid].min(), values[valid].max()))
    assert picture.how == f"in grey, {black:.4g} black and {white:.4g} white (percentiles 2 and 98)"
    assert answer.spent_pu == pytest.approx(2 * 64 * 64 / 512 / 512 / 3)  # floats cost double


def test_a_script_that_fails_is_told_with_its_line(process: SentinelHubDownloadClient, tmp_path: Path) -> None:
    script = script_of(tmp_path, "['B02']", "{bands: 1}", "[s.B03.x]")
    with pytest.raises(InvalidInput, match=r"(?s)refused the request \(400\).*evalscript.js:3"):
        fetch(process, body_of(script, PLACE, script.outputs[0]))


def test_an_account_without_units_is_told(
    orbits_hub: LocalHub, process: SentinelHubDownloadClient, tmp_path: Path
) -> None:
    script = script_of(tmp_path, "['B02']", "{bands: 1}", "[1]")
    set_balance(orbits_hub, 0)
    try:
        with pytest.raises(AccessDenied, match="Insufficient processing units"):
            fetch(process, body_of(script, PLACE, script.outputs[0]))
    finally:
        set_balance(orbits_hub, None)


@pytest.mark.parametrize(("status", "error"), [(429, NotYet), (502, Unavailable), (0, Unavailable)])
def test_the_request_is_sent_once_whatever_happens_to_it(
    orbits_hub: LocalHub, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    script = script_of(tmp_path, "['B02']", "{bands: 1}", "[1]")
    with FaultyServer(orbits_hub.base_url, (Fault("POST", "/process", status, executed=status == 0),)) as server:
        client = connect_process(Service(base_url=server.base_url))
        with pytest.raises(error):
            fetch(client, body_of(script, PLACE, script.outputs[0]))
        assert server.count("POST", "/process") == 1


def test_a_price_that_the_service_does_not_tell_is_none(orbits_hub: LocalHub, tmp_path: Path) -> None:
    script = script_of(tmp_path, "['B02']", "{bands: 1}", "[1]")
    with FaultyServer(orbits_hub.base_url) as server:  # it passes no headers on
        answer = fetch(connect_process(Service(base_url=server.base_url)), body_of(script, PLACE, script.outputs[0]))
    assert answer.spent_pu is None


# ---- the picture, of any output ----


def tiff(values: NDArray[Any], nodata: float | None = None) -> bytes:
    count, height, width = values.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(0, 0, 10, 10)}
    with MemoryFile() as file:
        with file.open(**profile, **place, nodata=nodata) as dataset:
            dataset.write(values)
        return bytes(file.read())


@pytest.mark.parametrize(
    ("count", "colours", "how"),
    [
        (1, [0], "in grey"),
        (2, [0], "the first of them in grey"),
        (3, [0, 1, 2], "the first three as red, green, blue"),
        (4, [0, 1, 2], "the first three as red, green, blue"),
        (25, [12], "the middle one, number 13, in grey"),
    ],
)
def test_bands_are_chosen_by_their_number(count: int, colours: list[int], how: str) -> None:
    values = np.arange(count * 400, dtype=np.uint16).reshape(count, 20, 20)
    picture = picture_of(tiff(values), ("o", count, "UINT16"))
    shown = values[colours].astype(float)
    black, white = np.percentile(shown, (2, 98))
    with MemoryFile(picture.png) as file, file.open() as dataset:
        drawn = dataset.read()
    assert len(drawn) == len(colours) + 1
    assert (drawn[:-1] == np.round(255 * np.clip((shown - black) / (white - black), 0, 1))).all()
    assert picture.how.startswith(f"{how}, ")
    assert picture.values == (shown.min(), shown.max())


def test_the_files_own_nodata_value_is_no_value() -> None:
    values = np.array([[[65535, 1], [2, 3]]], np.uint16)
    picture = picture_of(tiff(values, nodata=65535), ("o", 1, "UINT16"))
    assert picture.values == (1, 3)


def test_one_value_is_grey_and_none_is_transparent() -> None:
    flat = picture_of(tiff(np.full((1, 4, 4), 5, np.uint16)), ("o", 1, "UINT16"))
    none = picture_of(tiff(np.full((1, 4, 4), np.nan, np.float32)), ("o", 1, "FLOAT32"))
    with MemoryFile(flat.png) as file, file.open() as dataset:
        assert [band.flat[0] for band in dataset.read()] == [128, 255]
    with MemoryFile(none.png) as file, file.open() as dataset:
        assert (dataset.read(2) == 0).all()
    assert (flat.values, none.values) == ((5, 5), None)
    assert none.how == "in grey, without a valid value"


def test_an_answer_that_is_no_image_is_told() -> None:
    with pytest.raises(ServiceError, match="gave no image but 6 bytes that start b'<html>'"):
        picture_of(b"<html>", ("o", 1, "AUTO"))
