"""What the vendor's client sends: every method of BatchProcessClient, with every argument that it has."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import shapely
from sentinelhub import (
    CRS,
    BatchProcessClient,
    BatchProcessRequest,
    BBox,
    DataCollection,
    Geometry,
    MimeType,
    SentinelHubRequest,
)
from sentinelhub.exceptions import DownloadFailedException

from localhub.seaweed import SeaweedFS
from tests.localhub.batch_requests import RED, access, wait_for

PERIOD = ("2015-07-01", "2015-09-30")
SUMMER = SentinelHubRequest.input_data(DataCollection.SENTINEL2_L1C, time_interval=PERIOD)
CLEAR_SUMMER = SentinelHubRequest.input_data(
    DataCollection.SENTINEL2_L1C,
    identifier="scenes",
    time_interval=PERIOD,
    maxcc=0.8,
    mosaicking_order="leastCC",
    upsampling="BILINEAR",
    downsampling="NEAREST",
    other_args={"processing": {"harmonizeValues": True}},
)
"""With every filter and option of the collection that the builder and the description have."""
CORNERS = BBox((14.555, 45.868, 14.560, 45.872), CRS.WGS84)
SQUARE = Geometry(shapely.box(465300, 5079500, 465400, 5079600), CRS.UTM_33N)
COG_PARAMETERS = {
    "overviewLevels": [2, 4],
    "overviewMinSize": 64,
    "resamplingAlgorithm": "average",
    "blockxsize": 128,
    "blockysize": 128,
    "usePredictor": False,
}
ARRAY = {"dtype": "<u2", "order": "C", "chunks": [1, 100, 100], "fill_value": 65535, "compressor": {"id": "zlib"}}
FLOATS = {**ARRAY, "dtype": "<f4", "fill_value": "NaN", "compressor": None}


@dataclass(frozen=True)
class Caller:
    """A client, and where its requests find and leave their files."""

    client: BatchProcessClient
    s3: SeaweedFS
    bucket: str
    features_url: str
    """GeoPackage with a few features."""

    def with_keys(self, folder: str, **more: Any) -> dict[str, Any]:
        """Access to a folder of the bucket by a pair of keys."""
        specification = access(self.s3, f"s3://{self.bucket}/{folder}")
        return {"s3": specification["s3"] | more}

    def with_role(self, url: str) -> dict[str, Any]:
        """Access by an IAM role."""
        role = "arn:aws:iam::123456789012:role/reader"
        return dict(BatchProcessClient.s3_specification(url=url, iam_role_arn=role, region="eu-central-1"))

    def process_request(self, evalscript: str, *data: dict[str, Any], userdata: bool = False, **area: Any) -> Any:
        """Build a request with the vendor's builder."""
        responses = [SentinelHubRequest.output_response("default", MimeType.TIFF)]
        if userdata:
            responses.append(SentinelHubRequest.output_response("userdata", MimeType.JSON))
        return SentinelHubRequest(evalscript, list(data), responses, config=self.client.config, **area)

    def created(self, evalscript: str = RED) -> BatchProcessRequest:
        """Create a request over the features of the GeoPackage."""
        return self.client.create(
            self.process_request(evalscript, SUMMER, geometry=SQUARE),
            self.client.geopackage_input(self.with_role(self.features_url)),
            self.client.raster_output(self.with_keys("results")),
        )


def _create(caller: Caller) -> None:
    client = caller.client
    client.create(
        caller.process_request(RED, CLEAR_SUMMER, bbox=CORNERS),
        client.tiling_grid_input(1, 10, buffer_x=2, buffer_y=3),
        client.raster_output(
            caller.with_keys("grid/<requestId>/<tileName>/<outputId>.<format>", region="eu-central-1"),
            overwrite=True,
            skip_existing=True,
            cog_output=True,
            cog_parameters=COG_PARAMETERS,
            create_collection=False,
        ),
        instance_type="large",
        description="a tiling grid, rasters, keys",
    )
    client.create(
        caller.process_request(RED, SUMMER, geometry=SQUARE, userdata=True),
        client.geopackage_input(caller.with_role(caller.features_url)),
        client.raster_output(caller.with_role(f"s3://{caller.bucket}/features")),
        description="a GeoPackage, rasters, a role",
    )
    _create_collection(caller)
    _create_zarr(caller)


def _create_collection(caller: Caller) -> None:
    """Send what localhub refuses with 400: results as a collection."""
    client = caller.client
    collection = "5f0d7e6a-3f3b-4f0e-9e0c-2a8f4b0c1d2e"
    output = client.raster_output(caller.with_keys("byoc"), create_collection=True, collection_id=collection)
    with contextlib.suppress(DownloadFailedException):
        client.create(caller.process_request(RED, CLEAR_SUMMER, bbox=CORNERS), client.tiling_grid_input(1, 10), output)


def _create_zarr(caller: Caller) -> None:
    """Order arrays with every parameter, and with what Zarr has beside the description."""
    _create_arrays(caller, ARRAY, {**ARRAY, "customAttributes": {"units": "1"}})
    _create_arrays(caller, FLOATS, {"customAttributes": {"units": "1"}})


def _create_arrays(caller: Caller, parameters: dict[str, Any], override: dict[str, Any]) -> None:
    client = caller.client
    payload = caller.process_request(RED, CLEAR_SUMMER, bbox=CORNERS).download_list[0].post_values
    payload["output"]["responses"] = [{"identifier": "default", "format": {"type": "zarr/array"}}]
    output = client.zarr_output(
        caller.with_keys("zarr/<requestId>"),
        group={"zarr_format": 2, "coordinates": {"origin": "topLeft"}, "customAttributes": {"title": "Red"}},
        array_parameters=parameters,
        array_overrides={"default": override},
    )
    client.create(payload, client.tiling_grid_input(7, 10), output)


def _iter_requests(caller: Caller) -> None:
    requests = caller.client.iter_requests
    assert len(list(requests(search="rasters", count=1))) == 2  # two pages
    for sort in ("created", "created:desc", "status", "status:desc"):
        assert list(requests(user_id="anybody", search="rasters", sort=sort))


def _get_request(caller: Caller) -> None:
    caller.client.get_request(caller.created())


def _update_request(caller: Caller) -> None:
    caller.client.update_request(caller.created(), "another description")


def _start_analysis(caller: Caller) -> None:
    request = caller.created()
    caller.client.start_analysis(request)
    wait_for(caller.client, request, ["ANALYSIS_DONE"])


def _start_job(caller: Caller) -> None:
    """Follow one job to its end, and one that fails."""
    for evalscript, end in ((RED, "DONE"), ("no evalscript", "FAILED")):
        request = caller.created(evalscript)
        caller.client.start_job(request)
        wait_for(caller.client, request, [end])


def _stop_job(caller: Caller) -> None:
    request = caller.created()
    caller.client.start_analysis(request)
    caller.client.stop_job(request)
    wait_for(caller.client, request, ["STOPPED"])


def _iter_tiling_grids(caller: Caller) -> None:
    list(caller.client.iter_tiling_grids(count=2))


def _get_tiling_grid(caller: Caller) -> None:
    for grid in caller.client.iter_tiling_grids():
        caller.client.get_tiling_grid(grid["id"])


CALLS: dict[str, Callable[[Caller], None]] = {
    "create": _create,
    "iter_requests": _iter_requests,
    "get_request": _get_request,
    "update_request": _update_request,
    "start_analysis": _start_analysis,
    "start_job": _start_job,
    "stop_job": _stop_job,
    "iter_tiling_grids": _iter_tiling_grids,
    "get_tiling_grid": _get_tiling_grid,
}
"""By method of the client."""
NO_REQUEST = frozenset(
    {"geopackage_input", "raster_output", "s3_specification", "tiling_grid_input", "zarr_output"},
)
"""Methods of the client that send nothing; `create` is called with the results of all of them."""
