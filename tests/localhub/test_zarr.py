"""Zarr output: the group opens in zarr and GDAL, and holds what the same request delivers as rasters."""

import json
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import s3fs
import shapely
import zarr
from numpy.typing import NDArray
from sentinelhub import BatchProcessClient, BatchProcessRequest

from localhub.engine import EvalscriptError, Output
from localhub.errors import RequestFailed
from localhub.objectstore import Access
from localhub.payload import parse_create_request
from localhub.raster import RasterStack
from localhub.seaweed import SeaweedFS
from localhub.zarroutput.documents import Period, group_attributes, group_objects
from localhub.zarroutput.frame import check_chunks, frame_of
from localhub.zarroutput.group import ZarrGroup, check_output, group_of
from localhub.zarroutput.parameters import ArrayLayout
from tasks.grid import Tile
from tests.localhub.batch_requests import access, process_request, wait_for
from tests.localhub.conftest import upload_grid

ARRAY = {"dtype": "<u2", "order": "C", "chunks": [1, 10, 20], "fill_value": 0}
LAYOUT = ArrayLayout("red", "<u2", 10, 20, 0, None, {})
PERIOD = Period(datetime(2015, 7, 1, tzinfo=UTC), datetime(2015, 9, 30, 23, 59, 59, tzinfo=UTC))


def tile(name: str, column: int, row: int, width: int = 40, height: int = 30, epsg: int = 32633) -> Tile:
    """A tile whose lower-left corner is whole pixels of 10 m from 500000, 5000000."""
    west, south = 500_000.0 + 10 * column, 5_000_000.0 + 10 * row
    return Tile(name, epsg, (west, south, west + 10 * width, south + 10 * height), width, height)


# ---- the frame ----


@pytest.mark.parametrize("bottom_left", [False, True])
def test_the_frame_is_the_envelope_and_its_coordinates_are_pixel_centres(bottom_left: bool) -> None:
    frame = frame_of([tile("a", 40, 0), tile("b", 0, 60, height=20)], bottom_left=bottom_left)
    assert (frame.bounds, frame.width, frame.height) == ((500_000, 5_000_000, 500_800, 5_000_800), 80, 80)
    np.testing.assert_allclose(frame.x, [500_005 + 10 * i for i in range(80)], rtol=0, atol=1e-6)
    rising = [5_000_005 + 10 * i for i in range(80)]
    np.testing.assert_allclose(frame.y, rising if bottom_left else rising[::-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([tile("b", 40, 0, epsg=32634)], "features of one CRS; the features have EPSG:32633, EPSG:32634"),
        ([replace(tile("b", 40, 0), width=80, height=60)], "'b' does not lie on that of 'a'"),
        ([Tile("b", 32633, (500_405, 5_000_000, 500_805, 5_000_300), 40, 30)], "'b' does not lie on that of 'a'"),
        ([tile("b", 39, 0)], "features that do not overlap; 'a' and 'b' do"),
        ([tile("b", 40, 0), tile("c", 50, 10, 20, 10)], "features that do not overlap; 'b' and 'c' do"),
    ],
)
def test_tiles_that_do_not_share_a_pixel_grid_are_refused(others: list[Tile], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame_of([tile("a", 0, 0), *others], bottom_left=False)


def test_degrees_make_a_frame_without_rounding_faults() -> None:
    tiles = [Tile(f"{x}", 4326, (x, 45.0, x + 1.0, 46.0), 5000, 5000) for x in range(-3, 3)]
    frame = frame_of(tiles, bottom_left=True)
    check_chunks(frame, tiles, [replace(LAYOUT, chunk_height=500, chunk_width=1000)])
    assert (frame.width, frame.height) == (30_000, 5000)
    np.testing.assert_allclose(frame.x[-1], 3 - 0.0001, rtol=1e-12)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (20, 20, "Chunks of array 'red', 20 x 20 pixels, do not divide the 30 x 40 pixels of 'a'"),
        (10, 30, "Chunks of array 'red', 10 x 30 pixels, do not divide the 30 x 40 pixels of 'a'"),
        (30, 20, "'b' starts at row 40, column 40 of the group, within a chunk of array 'red'"),
        (10, 40, None),
    ],
)
def test_every_tile_must_consist_of_whole_chunks(height: int, width: int, message: str | None) -> None:
    tiles = [tile("a", 0, 40), tile("b", 40, 0)]
    layouts = [LAYOUT, replace(LAYOUT, chunk_height=height, chunk_width=width)]
    frame = frame_of(tiles, bottom_left=False)
    if message is None:
        check_chunks(frame, tiles, layouts)
    else:
        with pytest.raises(ValueError, match=message):
            check_chunks(frame, tiles, layouts)


# ---- what a group says of itself ----


def opened(layout: ArrayLayout, epsg: int = 32633, **attributes: Any) -> zarr.Group:
    """A group without chunks, from its objects alone, as zarr sees it."""
    frame = frame_of([tile("a", 0, 0, epsg=epsg)], bottom_left=False)
    defaults = group_attributes(frame, PERIOD, "some-id", datetime(2026, 11, 24, 12, 0, tzinfo=UTC))
    return zarr.open_consolidated(group_objects(frame, [layout], PERIOD, defaults | attributes), mode="r")


def test_an_array_without_chunks_holds_its_fill_value_everywhere() -> None:
    red = opened(replace(LAYOUT, fill_value=7))["red"]
    assert (red.shape, red.chunks, red.dtype, red.order) == ((1, 30, 40), (1, 10, 20), "<u2", "C")
    np.testing.assert_array_equal(red[:], np.full((1, 30, 40), 7))
    assert np.isnan(opened(replace(LAYOUT, dtype=">f4", fill_value="NaN"))["red"][:]).all()


def test_coordinates_have_the_dimensions_names_and_units_of_the_conventions() -> None:
    group = opened(LAYOUT)
    assert sorted(group) == ["red", "time", "x", "y"]
    assert group["red"].attrs["_ARRAY_DIMENSIONS"] == ["time", "y", "x"]
    assert group["time"].attrs.asdict() == {
        "_ARRAY_DIMENSIONS": ["time"],
        "standard_name": "time",
        "units": "seconds since 1970-01-01 00:00:00",
        "calendar": "proleptic_gregorian",
    }
    assert group["time"][:].tolist() == [datetime(2015, 7, 1, tzinfo=UTC).timestamp()]
    assert (group["y"].attrs["standard_name"], group["y"].attrs["units"]) == ("projection_y_coordinate", "m")
    assert group["x"].fill_value is None
    degrees = opened(LAYOUT, epsg=4326)
    assert [degrees[name].attrs["standard_name"] for name in "yx"] == ["latitude", "longitude"]


def test_custom_attributes_are_added_and_override_the_defaults() -> None:
    own = {"_ARRAY_DIMENSIONS": ["date", "y", "x"], "units": "1"}
    group = opened(replace(LAYOUT, custom_attributes=own), date_modified="never", copyright="mine")
    assert group["red"].attrs.asdict().items() >= own.items()
    assert group.attrs.asdict().items() >= {"id": "some-id", "date_modified": "never", "copyright": "mine"}.items()


def test_the_group_says_when_and_where_its_data_is() -> None:
    attributes = opened(LAYOUT).attrs.asdict()
    times = [attributes[name] for name in ("date_modified", "time_coverage_start", "time_coverage_end")]
    assert times == ["2026-11-24T12:00:00Z", "2015-07-01T00:00:00Z", "2015-09-30T23:59:59Z"]
    box = gpd.GeoSeries([shapely.box(500_000, 5_000_000, 500_400, 5_000_300)], crs=32633).to_crs(4326).total_bounds
    extent = [attributes[f"geospatial_{side}"] for side in ("lon_min", "lat_min", "lon_max", "lat_max")]
    np.testing.assert_allclose(extent, box, atol=1e-9)


def test_consolidated_metadata_is_that_of_the_single_objects() -> None:
    frame = frame_of([tile("a", 0, 0)], bottom_left=False)
    objects = group_objects(frame, [LAYOUT], PERIOD, {"a": 1})
    consolidated = json.loads(objects.pop(".zmetadata"))
    single = {key: json.loads(value) for key, value in objects.items() if key.rpartition("/")[2].startswith(".z")}
    assert consolidated == {"zarr_consolidated_format": 1, "metadata": single}


@pytest.mark.parametrize(
    ("dtype", "held"),
    [
        ("|u1", {"UINT8", "AUTO"}),
        ("|i1", {"INT8"}),
        ("<u2", {"UINT16", "UINT8", "AUTO"}),
        (">i2", {"INT16", "UINT8", "INT8", "AUTO"}),
        ("<f4", {"UINT8", "UINT16", "INT8", "INT16", "AUTO", "FLOAT32"}),
        (">f8", {"UINT8", "UINT16", "INT8", "INT16", "AUTO", "FLOAT32"}),
    ],
)
def test_an_array_takes_the_sample_types_that_the_description_lists(dtype: Any, held: set[str]) -> None:
    for sample_type in ("UINT8", "UINT16", "INT8", "INT16", "AUTO", "FLOAT32"):
        output = Output("red", 1, sample_type, None)
        if sample_type in held:
            check_output(output, replace(LAYOUT, dtype=dtype))
        else:
            with pytest.raises(EvalscriptError, match=f"'red' has the sampleType {sample_type}, .* dtype"):
                check_output(output, replace(LAYOUT, dtype=dtype))


def test_an_array_takes_outputs_of_one_band() -> None:
    with pytest.raises(EvalscriptError, match="Output 'red' has 2 bands; zarr/array takes outputs of one band"):
        check_output(Output("red", 2, "UINT16", None), LAYOUT)


# ---- a group in a bucket ----


def zarr_body(s3: SeaweedFS, url: str, **fields: Any) -> dict[str, Any]:
    """A create request for the array `red`."""
    output = {"type": "zarr", "delivery": access(s3, url), "group": {"zarr_format": 2}, "arrayParameters": ARRAY}
    return {
        "processRequest": process_request(CLOUDLESS, [("red", "zarr/array")]),
        "input": {"type": "geopackage", "features": access(s3, f"{url}/grid.gpkg")},
        "output": {**output, **fields},
    }


def group_in(s3: SeaweedFS, url: str, request_id: str = "6f1c7d5e", **fields: Any) -> ZarrGroup:
    request = parse_create_request(zarr_body(s3, url, **fields))
    return group_of(request, request_id, Access(s3.endpoint_url, s3.access_key, s3.secret_key))


@pytest.mark.parametrize("name", ["a.txt", "sub/a.txt", ".zattrs", ".zgroup", ".zmetadata"])
def test_a_folder_that_holds_a_file_is_refused(
    s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, name: str
) -> None:
    s3_files.pipe_file(f"{bucket}/cube/{name}", b"{}")
    with pytest.raises(RequestFailed, match=f"File s3://{bucket}/cube/{name} exists already; a Zarr group needs"):
        group_in(s3, f"s3://{bucket}/cube").write([tile("a", 0, 0)])
    assert s3_files.find(bucket) == [f"{bucket}/cube/{name}"]


def test_a_folder_that_another_request_has_taken_is_refused_and_its_own_is_not(
    s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    tiles = [tile("a", 0, 0)]
    s3_files.pipe_file(f"{bucket}/cube/request-6f1c7d5e.json", b"{}")
    group_in(s3, f"s3://{bucket}/cube").write(tiles)
    group_in(s3, f"s3://{bucket}/cube").write(tiles)  # an analysis that is repeated after a crash
    with pytest.raises(RequestFailed, match="exists already; a Zarr group needs a folder without files"):
        group_in(s3, f"s3://{bucket}/cube", "another").write(tiles)


@pytest.mark.parametrize(
    ("bottom_left", "dtype", "compressor"),
    [
        (False, "<u2", {"id": "blosc"}),
        (True, "<u2", {"id": "gzip", "level": 1}),
        (False, ">f4", {"id": "zstd"}),
        (True, ">f4", {"id": "blosc", "cname": "zstd", "shuffle": 2}),
        (True, "<f8", None),
    ],
)
def test_the_chunks_of_tiles_make_up_what_their_rasters_hold(
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    tmp_path: Path,
    bottom_left: bool,
    dtype: str,
    compressor: dict[str, Any] | None,
) -> None:
    tiles = [tile("a", 0, 0), tile("b", 40, 30, 60, 20), tile("c", 100, 10, 20, 10)]
    origin = {"origin": "bottomLeft" if bottom_left else "topLeft"}
    array = {**ARRAY, "dtype": dtype, "fill_value": 3, "compressor": compressor}
    fields = {"group": {"zarr_format": 2, "coordinates": origin}, "arrayParameters": array}
    group = group_in(s3, f"s3://{bucket}/<requestId>", **fields)
    group.write(tiles)
    expected = np.full((50, 120), 3)  # rows from the south
    random = np.random.default_rng(1)
    for part, (row, column) in zip(tiles, [(0, 0), (30, 40), (10, 100)], strict=True):
        values = random.integers(0, 65535, (part.height, part.width), np.uint16)
        values[:10, :20] = 3
        folder = tmp_path / part.name
        folder.mkdir()
        with RasterStack(folder, part, [Output("red", 1, "UINT16", None)]) as stack:
            stack.write(0, {"red": values[np.newaxis]})
        for file in group.chunk_files(part, stack, folder):
            s3_files.put_file(str(file.path), f"{bucket}/{file.key}")
        expected[row : row + part.height, column : column + part.width] = values[::-1]
    found = zarr.open_consolidated(s3_files.get_mapper(f"{bucket}/6f1c7d5e"), mode="r")["red"]
    np.testing.assert_array_equal(found[0], expected if bottom_left else expected[::-1])
    rows = expected.reshape(5, 10, 6, 20) if bottom_left else expected[::-1].reshape(5, 10, 6, 20)
    written = {f"0.{i}.{j}" for i, j in product(range(5), range(6)) if (rows[i, :, j] != 3).any()}
    assert 0 < len(written) < 30
    assert {Path(key).name for key in s3_files.find(f"{bucket}/6f1c7d5e/red")} - {".zarray", ".zattrs"} == written


def test_a_script_that_makes_more_bands_than_it_declared_fails_its_feature(
    s3: SeaweedFS, bucket: str, tmp_path: Path
) -> None:
    with RasterStack(tmp_path, tile("a", 0, 0), [Output("red", 2, "UINT16", None)]) as stack:
        stack.write_zeros()
    with pytest.raises(EvalscriptError, match="Output 'red' has 2 bands"):
        group_in(s3, f"s3://{bucket}").chunk_files(tile("a", 0, 0), stack, tmp_path)


# ---- the service ----

CLOUDLESS = """//VERSION=3
function setup() {
  return {
    input: [{bands: ["B04", "B08"], units: "DN"}],
    output: [{id: "index", bands: 1, sampleType: "FLOAT32"}, {id: "red", bands: 1, sampleType: "UINT16"}],
  };
}
function evaluatePixel(s) {
  return {index: [s.B04 > 500 ? (s.B08 - s.B04) / (s.B08 + s.B04) : NaN], red: [s.B04 > 500 ? s.B04 : 0]};
}
"""
"""The newest scene where red is bright."""


@pytest.fixture
def three_features(s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path) -> str:
    """URL of a GeoPackage with three of four squares of 40 x 40 pixels within the scenes."""
    corners = {"sw": (465200, 5079100), "se": (465600, 5079100), "nw": (465200, 5079500)}
    table = gpd.GeoDataFrame(
        {"id": range(3), "identifier": list(corners), "resolution": [10.0] * 3},
        geometry=[shapely.box(x, y, x + 400, y + 400) for x, y in corners.values()],
        crs="EPSG:32633",
    )
    return upload_grid(table, s3_files, bucket, tmp_path)


def start_zarr(client: BatchProcessClient, s3: SeaweedFS, grid: str, url: str, **fields: Any) -> BatchProcessRequest:
    """Create and start a request for the arrays `red` and `index` over the features of a GeoPackage."""
    request = client.create(
        process_request(CLOUDLESS, [("red", "zarr/array"), ("index", "zarr/array")]),
        client.geopackage_input(access(s3, grid)),
        client.zarr_output(
            access(s3, url),
            **{
                "group": {"zarr_format": 2},
                "array_parameters": ARRAY,
                "array_overrides": {"index": {"dtype": "<f4", "fill_value": "NaN", "chunks": [1, 40, 40]}},
                **fields,
            },
        ),
    )
    client.start_job(request)
    return request


def mosaic_of_rasters(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, grid: str
) -> dict[str, NDArray[Any]]:
    """What the same request delivers as rasters, put together on the envelope, rows from the north."""
    request = client.create(
        process_request(CLOUDLESS, [("red", "image/tiff"), ("index", "image/tiff")]),
        client.geopackage_input(access(s3, grid)),
        client.raster_output(access(s3, f"s3://{bucket}/rasters/<tileName>/<outputId>.<format>")),
    )
    client.start_job(request)
    assert wait_for(client, request).error is None
    whole = {"red": np.zeros((80, 80), np.uint16), "index": np.full((80, 80), np.nan, np.float32)}
    for name, values in whole.items():
        for feature, (row, column) in {"sw": (40, 0), "se": (40, 40), "nw": (0, 0)}.items():
            content = s3_files.cat_file(f"{bucket}/rasters/{feature}/{name}.tif")
            with rasterio.MemoryFile(content) as memory, memory.open() as dataset:
                values[row : row + 40, column : column + 40] = dataset.read(1)
    return whole


def test_a_zarr_request_equals_the_same_request_as_rasters_pixel_by_pixel(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    three_features: str,
    tmp_path: Path,
) -> None:
    bottom_left = {"zarr_format": 2, "coordinates": {"origin": "bottomLeft"}}
    top = start_zarr(client, s3, three_features, f"s3://{bucket}/cubes/<requestId>")
    bottom = start_zarr(client, s3, three_features, f"s3://{bucket}/cubes/<requestId>", group=bottom_left)
    expected = mosaic_of_rasters(client, s3, s3_files, bucket, three_features)
    assert np.isfinite(expected["index"]).any()
    assert [wait_for(client, request).error for request in (top, bottom)] == [None, None]

    for request, step in ((top, 1), (bottom, -1)):
        store = s3_files.get_mapper(f"{bucket}/cubes/{request.request_id}")
        group = zarr.open_consolidated(store, mode="r")
        for name, values in expected.items():
            np.testing.assert_array_equal(group[name][0], values[::step])
        np.testing.assert_allclose(group["y"][:][::step], 5079895 - 10 * np.arange(80))
        np.testing.assert_allclose(group["x"][:], 465205 + 10 * np.arange(80))
        blocks = expected["red"][::step].reshape(8, 10, 4, 20).any(axis=(1, 3))
        assert 0 < blocks.sum() < 24
        assert {key for key in store if key.startswith("red/0")} == {
            f"red/0.{row}.{column}" for row, column in np.argwhere(blocks)
        }
        assert group.attrs["id"] == request.request_id

    database = tmp_path / "execution.sqlite"
    database.write_bytes(s3_files.cat_file(f"{bucket}/cubes/execution-{top.request_id}.sqlite"))
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT name, status, error, delivered FROM features ORDER BY name").fetchall()
    assert rows == [(name, "DONE", None, 1) for name in ("nw", "se", "sw")]
    manifest = tmp_path / "manifest.gpkg"
    manifest.write_bytes(s3_files.cat_file(f"{bucket}/cubes/featureManifest-{top.request_id}.gpkg"))
    table = pyogrio.read_dataframe(manifest)
    assert sorted(zip(table["identifier"], table["outputId"], strict=True)) == sorted(
        product(("nw", "se", "sw"), expected)
    )
    assert set(table["path"]) == {f"s3://{bucket}/cubes/{top.request_id}"}


def test_gdal_reads_the_documentations_example_over_a_laea_grid(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path
) -> None:
    def request(kind: str, output: Any) -> BatchProcessRequest:
        made = client.create(
            process_request(CLOUDLESS, [("red", kind)], bbox=(14.555, 45.868, 14.560, 45.872)),
            client.tiling_grid_input(6, 100),
            output,
        )
        client.start_job(made)
        return made

    array = {**ARRAY, "chunks": [1, 500, 250], "fill_value": 0}
    group = {"zarr_format": 2, "customAttributes": {"copyright": "My Company Ltd, 2023"}}
    cube = request(
        "zarr/array", client.zarr_output(access(s3, f"s3://{bucket}/z"), group=group, array_parameters=array)
    )
    raster = request("image/tiff", client.raster_output(access(s3, f"s3://{bucket}/r/<tileName>.tif")))
    assert [wait_for(client, made).error for made in (cube, raster)] == [None, None]
    s3_files.get(f"{bucket}/z", str(tmp_path / "z"), recursive=True)
    (name,) = [key for key in s3_files.find(f"{bucket}/r") if key.endswith(".tif")]
    with (
        rasterio.MemoryFile(s3_files.cat_file(name)) as memory,
        memory.open() as expected,
        rasterio.open(f'ZARR:"{tmp_path / "z"}":/red') as found,
    ):
        assert np.count_nonzero(expected.read(1)) > 10
        np.testing.assert_array_equal(found.read(1), expected.read(1))
        assert (found.crs, found.width, found.height) == (expected.crs, 1000, 1000)
        np.testing.assert_allclose(found.transform, expected.transform, rtol=1e-12)
    assert zarr.open_group(str(tmp_path / "z"), mode="r").attrs["copyright"] == "My Company Ltd, 2023"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"array_parameters": {**ARRAY, "chunks": [1, 30, 20]}},
            "Chunks of array 'red', 30 x 20 pixels, do not divide",
        ),
        (
            {"array_parameters": {**ARRAY, "dtype": "|u1"}},
            "'red' has the sampleType UINT16, which .* dtype |u1 does not",
        ),
    ],
)
def test_the_analysis_refuses_what_does_not_fit_into_the_arrays(
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    three_features: str,
    fields: dict[str, Any],
    reason: str,
) -> None:
    failed = wait_for(client, start_zarr(client, s3, three_features, f"s3://{bucket}/<requestId>", **fields))
    assert failed.status.value == "FAILED"
    with pytest.raises(RuntimeError, match=reason):
        failed.raise_for_status()
    assert not s3_files.exists(f"{bucket}/{failed.request_id}")
