"""The first task of the flow: everything is checked at once, each problem names its parameter, nothing is bought."""

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import s3fs
import shapely

from flows.order import local_reference, prepare, prepared_reference, survey_order
from flows.parameters import LandCover
from tasks.conversion import FeatureMapping
from tasks.errors import InvalidInput, Unavailable

pytestmark = pytest.mark.usefixtures("prefect_server")

BOX = [15.8, 46.34, 15.9, 46.44]
BOW_TIE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}


def problems(parameters: LandCover, **changes: Any) -> dict[str, str]:
    """What is wrong after changes of whole parts, by parameter."""
    content = parameters.model_dump(mode="json")
    for name, change in changes.items():
        content[name] = content[name] | change if isinstance(change, dict) else change
    with pytest.raises((InvalidInput, Unavailable)) as caught:
        prepare(LandCover.model_validate(content), with_service=True)
    return dict(line.partition(": ")[::2] for line in str(caught.value).splitlines())


def test_every_problem_is_told_at_once_with_its_parameter(
    parameters: LandCover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH_CLIENT_ID", "somebody")
    monkeypatch.setenv("SH_CLIENT_SECRET", "hush-hush")
    script = tmp_path / "broken.js"
    script.write_text("//VERSION=3\nfunction setup( {\n")
    found = problems(
        parameters,
        area={"geojson": BOW_TIE},
        period={"start": "2014-01-01", "end": "2014-12-31"},
        tiling={"geopackage": None, "grid": 1, "resolution_m": 15},
        imagery={"evalscript": str(script)},
        reference={"class_column": "KIND"},
        storage={"tiles_url": "s3://no-such-bucket/tiles", "destination": "/proc/version/eopatches"},
    )
    said = {
        "area": "Self-intersection",
        "period": "before Sentinel-2's first scenes",
        "tiling": "Resolution 15 m is not offered",
        "imagery.evalscript": "does not run: line:",
        "reference": "has no column KIND",
        "storage.tiles_url": "does not exist",
        "storage.destination": "is a file",
        "service": "refused the OAuth client",
    }
    assert found.keys() == said.keys()
    assert all(part in found[name] for name, part in said.items())
    assert "hush-hush" not in str(found)


def test_features_that_labels_would_replace_and_dates_that_zarr_cannot_hold_are_told(
    parameters: LandCover, tmp_path: Path
) -> None:
    side = 3500  # the most that there are
    tiles = gpd.read_file(str(parameters.tiling.geopackage)).drop(columns="resolution")
    tiles.assign(width=side, height=side).to_file(tmp_path / "tiles.gpkg", engine="pyogrio")
    rules = [
        {"feature_type": "mask_timeless", "name": "lulc", "outputs": ["VALID_COUNT"] * 22, "dtype": "int64"},
        {"feature_type": "data", "name": "REST", "outputs": [*parameters.imagery.bands, *parameters.imagery.indices]},
    ]
    mapped = parameters.model_copy(update={"features": FeatureMapping.model_validate({"features": rules})})
    found = problems(mapped, tiling={"geopackage": str(tmp_path / "tiles.gpkg")}, patches={"file_format": "zarr"})
    assert "makes mask_timeless/lulc, which the labels of the reference polygons would replace" in found["features"]
    assert "lulc has 2.2 GB: 3500 x 3500 pixels, 22 bands int64" in found["patches.file_format"]


def test_blocks_that_do_not_exist_are_named_once(parameters: LandCover) -> None:
    found = problems(
        parameters,
        service={"credentials_block": "no-client"},
        storage={"credentials_block": "no-keys", "destination": "s3://anywhere/eopatches"},
        reference={"file": "s3://anywhere/reference.gpkg"},
    )
    assert found.keys() == {"service", "storage.credentials_block"}
    assert "block named 'no-client'" in found["service"]
    assert "block named 'no-keys'" in found["storage.credentials_block"]


def test_keys_that_the_service_cannot_use_are_told_before_a_request_exists(
    parameters: LandCover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    found = problems(parameters, storage={"destination": "/proc/version/eopatches"})
    assert "needs lasting S3 keys" in found["storage"]


def test_a_service_that_is_not_there_matters_when_there_is_something_to_buy(parameters: LandCover) -> None:
    found = problems(parameters, service={"base_url": "http://127.0.0.1:9"})
    assert found.keys() == {"service"}
    assert "did not answer" in found["service"]


def test_where_only_the_service_does_not_answer_it_may_be_asked_again(parameters: LandCover) -> None:
    offline = parameters.service.model_copy(update={"base_url": "http://127.0.0.1:9"})
    with pytest.raises(Unavailable):
        prepare(parameters.model_copy(update={"service": offline}), with_service=True)
    storage = parameters.storage.model_copy(update={"destination": "/proc/version/eopatches"})
    with pytest.raises(InvalidInput):
        prepare(parameters.model_copy(update={"service": offline, "storage": storage}), with_service=True)


def test_polygons_are_tried_without_putting_them_where_workers_read_them(
    parameters: LandCover, bucket: str, s3_files: s3fs.S3FileSystem
) -> None:
    run = parameters.run.model_copy(update={"tiles_on": "dask", "dask_address": "tcp://127.0.0.1:9"})
    order = prepare(parameters.model_copy(update={"run": run}))
    with local_reference(order, survey_order(order)) as tried:
        assert tried is not None
        assert tried.findings.polygons > 0
        assert s3_files.find(bucket) == []
    with prepared_reference(order, survey_order(order)):
        assert s3_files.find(bucket) != []


def test_a_bucket_on_this_machine_is_none_that_sentinel_hub_delivers_to(parameters: LandCover) -> None:
    found = problems(parameters, service={"base_url": "https://services.sentinel-hub.com"})
    assert "is on this machine, where https://services.sentinel-hub.com cannot deliver" in found["storage.endpoint_url"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"class_column": "LULC_NAME"}, "no class ids, which are integers from 0 to 255"),
        ({"layer": "roads"}, "layer roads is not in it"),
        ({"class_table": {"1": 1}}, "not in the class table"),
    ],
)
def test_layer_columns_and_classes_of_a_reference_on_s3_are_checked_at_once(
    parameters: LandCover, bucket: str, s3_files: s3fs.S3FileSystem, change: dict[str, Any], part: str
) -> None:
    assert parameters.reference is not None
    s3_files.put_file(parameters.reference.file, f"{bucket}/reference.gpkg")
    found = problems(parameters, reference={"file": f"s3://{bucket}/reference.gpkg"} | change)
    assert found.keys() == {"reference"}
    assert part in found["reference"]


def test_an_area_may_lie_in_the_bucket(parameters: LandCover, bucket: str, s3_files: s3fs.S3FileSystem) -> None:
    s3_files.pipe_file(f"{bucket}/area.geojson", json.dumps(shapely.geometry.mapping(shapely.box(*BOX))).encode())
    content = parameters.model_dump(mode="json") | {"area": {"name": "x", "file": f"s3://{bucket}/area.geojson"}}
    area = prepare(LandCover.model_validate(content)).area
    assert area is not None
    assert area.equals(shapely.box(*BOX))
    found = problems(parameters, area={"file": f"s3://{bucket}/nowhere.geojson"})
    assert f"s3://{bucket}/nowhere.geojson cannot be reached" in found["area"]


def test_a_country_in_several_zones_is_an_order_of_all_their_tiles(parameters: LandCover, tmp_path: Path) -> None:
    outline = shapely.Polygon([(11.2, 46.4), (12.9, 47.6), (14.9, 48.9), (18.4, 48.2), (18.2, 46.9), (14.5, 46.4)])
    gpd.GeoDataFrame(geometry=[outline], crs=4326).to_file(tmp_path / "country.gpkg", engine="pyogrio")
    content = parameters.model_dump(mode="json")
    content["area"] = {"name": "Country", "file": str(tmp_path / "country.gpkg")}
    content["tiling"] = {"grid": 1, "resolution_m": 20}
    order = prepare(LandCover.model_validate(content))
    assert {tile.epsg for tile in order.tiles} == {32632, 32633, 32634}
    assert 400 < len(order.tiles) < 1200
    assert shapely.geometry.shape(order.work.process_request["input"]["bounds"]["geometry"]).equals(outline)
