"""What a request may ask of its output: each rule of the description, with the sentence for whoever breaks it."""

import math
from typing import Any

import numpy as np
import pytest
from sentinelhub import BatchProcessClient

from localhub.errors import ApiError
from localhub.payload import CogParameters, CreateRequest, RasterOutput, ZarrOutput, parse_create_request
from localhub.zarroutput.parameters import ArrayLayout
from tests.localhub.batch_requests import process_request

PLACE = {"s3": {"url": "s3://bucket/cube/<requestId>", "accessKey": "key", "secretAccessKey": "secret"}}
ARRAY = {"dtype": "<u2", "order": "C", "chunks": [1, 1000, 1000], "fill_value": 0}
ZARR = {"type": "zarr", "delivery": PLACE, "group": {"zarr_format": 2}, "arrayParameters": ARRAY}
RASTER = {"type": "raster", "delivery": {"s3": {**PLACE["s3"], "url": "s3://bucket/out"}}}
LAEA = {"type": "tiling-grid", "id": 6, "resolution": 100}
GEOPACKAGE = {"type": "geopackage", "features": {"s3": {**PLACE["s3"], "url": "s3://bucket/grid.gpkg"}}}
ARRAYS = [("band08", "zarr/array"), ("maxNDVI", "zarr/array")]


def payload(output: dict[str, Any], responses: Any = ARRAYS, tiles: Any = LAEA) -> dict[str, Any]:
    """A create request over Corsica."""
    return {
        "processRequest": process_request("//VERSION=3", responses, bbox=(8.44, 41.31, 9.66, 43.1)),
        "input": tiles,
        "output": output,
    }


def zarr(**fields: Any) -> dict[str, Any]:
    """A zarr output with some of its fields replaced."""
    return {**ZARR, **fields}


def array(**fields: Any) -> dict[str, Any]:
    """A zarr output with some of its array parameters replaced; None removes one."""
    return zarr(arrayParameters={name: value for name, value in {**ARRAY, **fields}.items() if value is not None})


def layouts(output: dict[str, Any]) -> dict[str, ArrayLayout]:
    """The arrays of a request over Corsica."""
    return {layout.name: layout for layout in parse_create_request(payload(output)).arrays}


def refusal(request: dict[str, Any]) -> str:
    """The message with which a request is refused."""
    with pytest.raises(ApiError) as caught:
        parse_create_request(request)
    assert (caught.value.status, caught.value.code) == (400, "COMMON_BAD_PAYLOAD")
    return caught.value.message


def test_the_documentations_own_example_is_accepted() -> None:
    overrides = {"maxNDVI": {"dtype": "<f4", "fill_value": "NaN"}}
    band, index = layouts(zarr(arrayOverrides=overrides)).values()
    assert (band.dtype, band.chunk_height, band.chunk_width, band.fill) == ("<u2", 1000, 1000, 0)
    assert (index.dtype, index.chunk_height, index.chunk_width) == ("<f4", 1000, 1000)
    assert np.isnan(index.fill)
    assert band.compressor == {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}


def test_the_vendors_client_is_understood_although_it_misspells_array_parameters() -> None:
    output = BatchProcessClient.zarr_output(PLACE, group={"zarr_format": 2}, array_parameters=ARRAY)
    assert "arrayParameter" in output
    assert layouts(output) == layouts(ZARR)


def test_overrides_may_complete_what_array_parameters_lack() -> None:
    output = zarr(
        arrayParameters={"order": "C", "chunks": [1, 500, 250]},
        arrayOverrides={
            "band08": {"dtype": ">i2", "fill_value": -1, "compressor": {"id": "zlib", "level": 3}},
            "maxNDVI": {**ARRAY, "dtype": "<f8", "customAttributes": {"units": "1"}},
        },
    )
    band, index = layouts(output).values()
    assert (band.dtype, band.chunk_height, band.chunk_width, band.fill) == (">i2", 500, 250, -1)
    assert band.compressor == {"id": "zlib", "level": 3}
    assert (index.dtype, index.chunk_height, index.custom_attributes) == ("<f8", 1000, {"units": "1"})


def test_without_array_parameters_the_overrides_must_be_complete() -> None:
    output = {name: value for name, value in ZARR.items() if name != "arrayParameters"}
    assert len(layouts(output | {"arrayOverrides": {"band08": ARRAY, "maxNDVI": ARRAY}})) == 2
    assert "array 'maxNDVI' lacks dtype, order, chunks, fill_value; give arrayParameters or arrayOverrides.maxNDVI" in (
        refusal(payload(output | {"arrayOverrides": {"band08": ARRAY}}))
    )


def test_a_compressor_may_be_null_and_is_else_completed_with_its_defaults() -> None:
    assert layouts(zarr(arrayOverrides={"band08": {"compressor": None}}))["band08"].compressor is None
    assert layouts(array(compressor={"id": "blosc", "cname": "zstd"}))["band08"].compressor == {
        "id": "blosc",
        "cname": "zstd",
        "clevel": 5,
        "shuffle": 1,
        "blocksize": 0,
    }


@pytest.mark.parametrize(
    ("dtype", "value", "stored"),
    [
        ("|u1", 255, 255),
        ("|i1", -128, -128),
        ("<u2", 7.0, 7),
        (">i2", -32768, -32768),
        ("<f4", 0.1, np.float32(0.1)),
        (">f8", -1e300, -1e300),
        ("<f4", "Infinity", math.inf),
        ("<f8", "-Infinity", -math.inf),
    ],
)
def test_a_fill_value_is_stored_in_the_arrays_type(dtype: str, value: Any, stored: Any) -> None:
    fill = layouts(array(dtype=dtype, fill_value=value))["band08"].fill
    assert (fill, fill.dtype) == (stored, np.dtype(dtype))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("|u1", 256),
        ("|u1", -1),
        ("|i1", 128),
        ("<u2", 0.5),
        ("<i2", 40000),
        ("<u2", "NaN"),
        ("<f4", 1e39),
        ("<i2", 10**400),
    ],
)
def test_a_fill_value_that_the_type_cannot_store_is_refused(dtype: str, value: Any) -> None:
    message = refusal(payload(array(dtype=dtype, fill_value=value)))
    assert f"array 'band08': fill_value {value!r} cannot be stored as {dtype}" in message


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (zarr(group=None), "output.group: Input should be"),
        ({name: value for name, value in ZARR.items() if name != "group"}, "output.group: Field required"),
        (zarr(group={}), "output.group.zarr_format: Field required"),
        (zarr(group={"zarr_format": 3}), "output.group.zarr_format: Input should be 2"),
        (
            zarr(group={"zarr_format": 2, "coordinates": {"origin": "topRight"}}),
            "output.group.coordinates.origin: Input should be 'topLeft' or 'bottomLeft'",
        ),
        (array(dtype="<u4"), "arrayParameters.dtype: Input should be '|u1'"),
        (array(order="F"), "arrayParameters.order: Input should be 'C'"),
        (array(chunks=[2, 1000, 1000]), "arrayParameters.chunks.0: Input should be 1"),
        (array(chunks=[1, 1000]), "arrayParameters.chunks.2: Field required"),
        (array(chunks=[1, 1000, 0]), "arrayParameters.chunks.2: Input should be greater than 0"),
        (array(chunks=[1, 1000, 10.5]), "arrayParameters.chunks.2: Input should be a valid integer"),
        (array(fill_value=True), "arrayParameters.fill_value.int: Input should be a valid integer"),
        (array(fill_value="nan"), "Input should be 'NaN', 'Infinity' or '-Infinity'"),
        (array(fill_value=None), "array 'band08' lacks fill_value; give arrayParameters or arrayOverrides.band08"),
        (array(order=None), "array 'band08' lacks order"),
        (array(compressor={"id": "pickle"}), "compressor 'pickle' is not offered; choose one of blosc, bz2, gzip"),
        (array(compressor={}), "compressor None is not offered"),
        (array(compressor={"id": ["blosc"]}), "compressor ['blosc'] is not offered"),
        (array(compressor={"id": "blosc", "cname": "lz5"}), "compressor 'blosc' does not work with these parameters"),
        (array(compressor={"id": "zlib", "level": 99}), "compressor 'zlib' does not work with these parameters"),
        (array(compressor={"id": "zlib", "speed": 1}), "compressor 'zlib' does not work with these parameters"),
        (zarr(arrayOverrides={"band8": {}}), "arrayOverrides names ['band8'], which no response has"),
        (zarr(delivery={"gs": {}}), "output.delivery.s3: Field required"),
    ],
)
def test_a_zarr_output_that_breaks_a_rule_is_refused(output: dict[str, Any], message: str) -> None:
    assert message in refusal(payload(output))


@pytest.mark.parametrize("key", ["<tileName>", "<requestId>/<outputId>", "<tileId>/z", "z-<format>", "a<b"])
def test_a_groups_path_may_vary_with_the_request_only(key: str) -> None:
    place = {"s3": {**PLACE["s3"], "url": f"s3://bucket/{key}"}}
    assert "a placeholder other than <requestId>" in refusal(payload(zarr(delivery=place)))


@pytest.mark.parametrize(
    ("url", "folder", "root"),
    [
        ("s3://bucket", "", ""),
        ("s3://bucket/some/folder", "some/folder/", "some/folder/"),
        ("s3://bucket/some/folder/", "some/folder/", "some/folder/"),
        ("s3://bucket/some/<requestId>", "some/<requestId>/", "some/"),
        ("s3://bucket/cube-<requestId>.zarr", "cube-<requestId>.zarr/", ""),
    ],
)
def test_a_groups_folder_is_its_path_and_metadata_goes_to_its_static_part(url: str, folder: str, root: str) -> None:
    request = parse_create_request(payload(zarr(delivery={"s3": {**PLACE["s3"], "url": url}})))
    assert (request.template.bucket, request.template.key, request.template.root) == ("bucket", folder, root)


@pytest.mark.parametrize("name", ["time", "x", "y", ".zattrs", "a/b", ".."])
def test_an_output_cannot_have_the_name_of_something_else_in_the_group(name: str) -> None:
    assert f"response '{name}' cannot be the name of an array" in refusal(payload(ZARR, [(name, "zarr/array")]))


@pytest.mark.parametrize(
    ("output", "responses", "name"),
    [
        (ZARR, [("band08", "zarr/array"), ("other", "image/tiff")], "other"),
        (ZARR, [("band08", "zarr/array"), ("userdata", "application/json")], "userdata"),
        (ZARR, [], "default"),
        (RASTER, [("band08", "zarr/array")], "band08"),
        (RASTER, [("band08", "image/tiff"), ("other", "zarr/array")], "other"),
    ],
)
def test_zarr_arrays_go_with_zarr_output_and_with_nothing_else(output: Any, responses: Any, name: str) -> None:
    assert f"response '{name}' has the format" in refusal(payload(output, responses))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            {"id": 1, "resolution": 10},
            "not offered for tiling grid 1 in UTM; choose 3 (WGS84 1 degree grid), 6 (LAEA 100",
        ),
        ({"id": 6, "resolution": 100, "bufferX": 1}, "bufferX and bufferY make tiles overlap"),
    ],
)
def test_zarr_output_needs_tiles_of_one_crs_that_do_not_overlap(grid: dict[str, Any], message: str) -> None:
    assert message in refusal(payload(ZARR, tiles={"type": "tiling-grid", **grid}))


@pytest.mark.parametrize(
    "tiles",
    [GEOPACKAGE, *({"type": "tiling-grid", "id": i, "resolution": r} for i, r in [(3, 0.001), (6, 40), (7, 20)])],
)
def test_zarr_output_is_offered_for_grids_of_one_crs_and_geopackages(tiles: dict[str, Any]) -> None:
    assert isinstance(parse_create_request(payload(ZARR, tiles=tiles)).output, ZarrOutput)


def test_the_origin_may_be_at_the_bottom() -> None:
    def bottom_left(request: CreateRequest) -> bool:
        assert isinstance(request.output, ZarrOutput)
        return request.output.bottom_left

    group = {"zarr_format": 2, "coordinates": {"origin": "bottomLeft"}}
    assert bottom_left(parse_create_request(payload(zarr(group=group))))
    assert not bottom_left(parse_create_request(payload(ZARR)))


def raster(**fields: Any) -> RasterOutput:
    """The parsed raster output of a request."""
    output = parse_create_request(payload({**RASTER, **fields}, [("default", "image/tiff")])).output
    assert isinstance(output, RasterOutput)
    return output


def test_a_raster_output_has_the_documented_defaults() -> None:
    output = raster()
    assert (output.overwrite, output.skip_existing, output.cog_output, output.create_collection) == (False,) * 4
    assert output.cog_parameters == CogParameters(
        overview_levels=None,
        overview_min_size=None,
        resampling_algorithm="average",
        blockxsize=1024,
        blockysize=1024,
        use_predictor=True,
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cogParameters": {"blockysize": 100}}, "output.cogParameters.blockysize"),
        ({"cogParameters": {"blockxsize": 0}}, "output.cogParameters.blockxsize"),
        ({"cogParameters": {"overviewLevels": [1]}}, "output.cogParameters.overviewLevels.0"),
        ({"cogParameters": {"overviewMinSize": 0}}, "output.cogParameters.overviewMinSize"),
        ({"cogParameters": {"resamplingAlgorithm": "bilinear"}}, "output.cogParameters.resamplingAlgorithm"),
        ({"cogParameters": {"usePredictor": "no"}}, "output.cogParameters.usePredictor"),
        ({"overwrite": 1}, "output.overwrite"),
        ({"skipExisting": "true"}, "output.skipExisting"),
        ({"collectionId": "6f1c7d5e-0000-4000-8000-000000000000"}, "output"),
    ],
)
def test_a_raster_output_that_breaks_a_rule_is_refused_at_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_create_request(payload({**RASTER, **fields}, [("default", "image/tiff")]))
    assert list(caught.value.errors or ()) == [field]


def test_an_unknown_type_of_output_is_refused() -> None:
    message = refusal(payload({**RASTER, "type": "tiff"}, [("default", "image/tiff")]))
    assert "output: Input tag 'tiff' found using 'type' does not match any of the expected tags" in message
