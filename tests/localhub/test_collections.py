"""Several collections in a request, and collections of users' own: by the vendor's client, against NumPy and GDAL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import requests
import s3fs
import shapely
from numpy.typing import NDArray
from sentinelhub import (
    CRS,
    BatchProcessRequest,
    BBox,
    DataCollection,
    MimeType,
    MosaickingOrder,
    SentinelHubRequest,
)

from localhub.archive import ArchiveSource
from localhub.process import ProcessTask, process
from localhub.process_payload import parse_process_request
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.batch_requests import access, client_of, session_of, wait_for
from tests.localhub.conftest import upload_grid
from tests.localhub.made_scenes import METHODS, grid, warped, write_scene
from tests.localhub.watching import remembered, task_of

PLACE = grid(32633, 728000.0, 5098000.0, 10, 60, 50)
BOX = BBox(PLACE.bounds, CRS.UTM_33N)
RADAR, HEIGHTS = "017aa0ae-33a6-45d3-8548-0f7d1041b40c", "heights"
SUMMER = {"timeRange": {"from": "2022-06-01T00:00:00Z", "to": "2022-06-30T00:00:00Z"}}

ALL_OF_IT = """//VERSION=3
function setup() {
  return {
    input: [
      {datasource: "s2", bands: ["B04", "dataMask"], units: "DN"},
      {datasource: "radar", bands: ["VV", "dataMask"], mosaicking: "ORBIT"},
    ],
    output: {bands: 5, sampleType: "FLOAT32"},
  };
}
function evaluatePixel(samples) {
  const [s2] = samples.s2, [new_, old] = samples.radar;
  return [s2.B04, s2.dataMask, new_.VV, old.VV, new_.dataMask];
}
"""


def one_band(band: str, more: str = "", sample_type: str = "FLOAT32") -> str:
    """A script that delivers a band as it is."""
    return (
        f"//VERSION=3\nfunction setup() {{ return {{input: [{{bands: ['{band}'] {more}}}], "
        f"output: {{bands: 1, sampleType: '{sample_type}'}}}}; }}\n"
        f"function evaluatePixel(s) {{ return [s.{band}]; }}"
    )


class Made:
    """The archive: Sentinel-2 L1C and radar in floats of two days, L2A of baseline 05.11, heights as integers."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(21)
        self.folder = folder
        self.red = random.integers(1, 9000, (2, 50, 60)).astype(np.uint16)
        self.red[:, :, :7] = 0
        self.radar = random.normal(-12, 4, (2, 50, 60)).astype(np.float32)
        self.radar[0, :10] = np.nan
        self.heights = random.integers(-400, 2800, (25, 30)).astype(np.int16)
        for number in (0, 1):
            time = f"2022-06-1{number}T10:00:00Z"
            radar = {"VV": self.radar[number]}
            write_scene(folder, f"s2-{number}", {"B04": self.red[number]}, PLACE, time=time)
            own = f"byoc-{RADAR}"
            write_scene(folder, f"radar-{number}", radar, PLACE, collection=own, time=time, nodata=None)
        self.surface = random.integers(1, 9000, (50, 60)).astype(np.uint16)
        self.surface[:5] = 0
        baseline = {"s2:processing_baseline": "05.11"}
        write_scene(folder, "l2a", {"B04": self.surface}, PLACE, collection="sentinel-2-l2a", **baseline)
        coarse = grid(32633, 728000.0, 5098000.0, 20, 30, 25)
        write_scene(folder, "dem", {"H": self.heights}, coarse, collection=f"byoc-{HEIGHTS}", nodata=-9999)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("collections"))


@pytest.fixture(scope="module")
def hub(hub_settings: Settings, made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub with the made archive."""
    own = {"data_dir": tmp_path_factory.mktemp("collections-hub"), "archive": made.folder, "workers": 1}
    with LocalHub(hub_settings.model_copy(update=own)) as running:
        yield running


@pytest.fixture(scope="module")
def s2(hub: LocalHub) -> DataCollection:
    return DataCollection.SENTINEL2_L1C.define_from("L1C_OF_COLLECTIONS", service_url=hub.base_url)


@pytest.fixture(scope="module")
def radar(hub: LocalHub) -> DataCollection:
    return DataCollection.define_byoc(RADAR, service_url=hub.base_url)


@pytest.fixture(scope="module")
def heights(hub: LocalHub) -> DataCollection:
    return DataCollection.define_byoc(HEIGHTS, service_url=hub.base_url)


def ask(hub: LocalHub, script: str, *data: Any, bbox: BBox = BOX, size: tuple[int, int] = (60, 50)) -> NDArray[Any]:
    """The image that the vendor's client gets."""
    request = SentinelHubRequest(
        script,
        list(data),
        [SentinelHubRequest.output_response("default", MimeType.TIFF)],
        bbox=bbox,
        size=size,
        config=client_of(hub).config,
    )
    (image,) = request.get_data()
    return np.asarray(image)


source = SentinelHubRequest.input_data


def test_a_collection_of_floats_comes_as_it_is_and_nan_is_no_data(
    hub: LocalHub, radar: DataCollection, made: Made
) -> None:
    stored = np.nan_to_num(made.radar[0])
    oldest = source(radar, mosaicking_order=MosaickingOrder.LEAST_RECENT)
    filled = np.where(np.isnan(made.radar[0]), made.radar[1], made.radar[0])
    np.testing.assert_array_equal(ask(hub, one_band("VV"), oldest), filled)
    first_day = source(radar, time_interval=("2022-06-10", "2022-06-10"))
    np.testing.assert_array_equal(ask(hub, one_band("VV"), first_day), stored)
    np.testing.assert_array_equal(ask(hub, one_band("dataMask"), first_day), stored != 0)


@pytest.mark.parametrize("method", ["NEAREST", "BILINEAR", "BICUBIC"])
def test_a_collection_of_signed_integers_is_warped_by_its_own_pixel_size(
    hub: LocalHub, heights: DataCollection, made: Made, method: Any
) -> None:
    """Its pixels are of 20 m, so 10 m is upsampling, although bands of Sentinel-2 may be finer."""
    read = ask(hub, one_band("H", sample_type="INT16"), source(heights, upsampling=method))
    np.testing.assert_array_equal(read, warped(made.folder / "dem_H.tif", PLACE, METHODS[method]))
    assert read.dtype == np.int16
    assert read.min() < 0


@pytest.mark.parametrize("harmonize", [None, True, False])
@pytest.mark.parametrize("unit", ["REFLECTANCE", "DN"])
def test_harmonize_values_does_what_is_documented_of_each_unit(
    hub: LocalHub, made: Made, harmonize: bool | None, unit: str
) -> None:
    l2a = DataCollection.SENTINEL2_L2A.define_from("L2A_OF_COLLECTIONS", service_url=hub.base_url)
    processing = {} if harmonize is None else {"processing": {"harmonizeValues": harmonize}}
    entry = source(l2a, other_args=processing)
    stored = made.surface.astype(float)
    shifted = np.where(stored == 0, 0, stored - 1000)
    expected = {
        ("DN", False): stored,
        ("DN", True): np.maximum(shifted, 0),
        ("REFLECTANCE", False): shifted * 0.0001,
        ("REFLECTANCE", True): np.maximum(shifted, 0) * 0.0001,
    }[unit, harmonize is not False]
    image = ask(hub, one_band("B04", f", units: '{unit}'"), entry)
    np.testing.assert_array_equal(image, expected.astype(np.float32))
    assert (image < 0).any() == ((unit, harmonize) == ("REFLECTANCE", False))


def test_one_script_reads_several_collections_each_with_its_filter(
    hub: LocalHub, s2: DataCollection, radar: DataCollection, made: Made
) -> None:
    image = ask(
        hub,
        ALL_OF_IT,
        source(s2, identifier="s2", mosaicking_order=MosaickingOrder.LEAST_RECENT),
        source(radar, identifier="radar"),
    )
    np.testing.assert_array_equal(image, all_of_it(made))


def all_of_it(made: Made) -> NDArray[Any]:
    """What `ALL_OF_IT` makes of the oldest Sentinel-2 scene, and of the radar with the newest day first."""
    old, new = np.nan_to_num(made.radar)
    return np.stack([made.red[0], made.red[0] != 0, new, old, new != 0], axis=-1).astype(np.float32)


BEFORE_AND_AFTER = """//VERSION=3
function setup() {
  const bands = ["B04", "dataMask"], units = "DN";
  return {input: [{datasource: "before", bands, units}, {datasource: "after", bands, units}],
          output: {bands: 1, sampleType: "INT16"}};
}
function evaluatePixel(samples) { return [samples.after[0].B04 - samples.before[0].B04]; }
"""


def test_one_collection_at_two_times_tells_what_has_changed(hub: LocalHub, s2: DataCollection, made: Made) -> None:
    image = ask(
        hub,
        BEFORE_AND_AFTER,
        source(s2, identifier="before", time_interval=("2022-06-10", "2022-06-10")),
        source(s2, identifier="after", time_interval=("2022-06-11", "2022-06-11")),
    )
    np.testing.assert_array_equal(image, made.red[1].astype(int) - made.red[0])


BY_POSITION = """//VERSION=3
function setup() {
  return {input: [{bands: ["H"]}, {bands: ["H"]}, {bands: ["VV"]}], output: {bands: 3, sampleType: "FLOAT32"}};
}
function evaluatePixel(samples) {
  return [samples[0][0].H, samples[1][0].H, samples[2].length];
}
"""


def test_each_entry_has_its_own_interpolation_and_may_have_no_scene(
    hub: LocalHub, heights: DataCollection, radar: DataCollection, made: Made
) -> None:
    image = ask(
        hub,
        BY_POSITION,
        source(heights, upsampling="BICUBIC"),
        source(heights),
        source(radar, time_interval=("2019-01-01", "2019-01-02")),
    )
    expected = [warped(made.folder / "dem_H.tif", PLACE, METHODS[name]) for name in ("BICUBIC", "NEAREST")]
    np.testing.assert_array_equal(image, np.stack([*expected, np.zeros((50, 60))], axis=-1))


def body(script: str, *data: dict[str, Any], size: int = 20) -> dict[str, Any]:
    """A Process API request of bare JSON."""
    crs = {"crs": "http://www.opengis.net/def/crs/EPSG/0/32633"}
    return {
        "input": {"bounds": {"bbox": list(PLACE.bounds), "properties": crs}, "data": list(data)},
        "evalscript": script,
        "output": {"width": size, "height": size, "responses": [{"format": {"type": "image/tiff"}}]},
    }


S2_ENTRY: dict[str, Any] = {"type": "sentinel-2-l1c", "id": "s2"}
RADAR_ENTRY: dict[str, Any] = {"type": f"byoc-{RADAR}", "id": "radar"}


def post(hub: LocalHub, payload: Any) -> requests.Response:
    return session_of(hub).post(f"{hub.base_url}/api/v1/process", json=payload, timeout=60)


def test_data_fusion_costs_the_published_multiple(hub: LocalHub) -> None:
    answer = post(hub, body(ALL_OF_IT, S2_ENTRY, RADAR_ENTRY, size=512))
    spent = float(answer.headers["x-processingunits-spent"])
    assert spent == pytest.approx(2 / 3 * 2 * 2 * 2)  # two bands, two samples, 32 bits, two collections


@pytest.mark.parametrize(
    ("script", "data", "code", "text"),
    [
        (ALL_OF_IT, [S2_ENTRY], "RENDERER_EXCEPTION", "asks for datasource 'radar'; the request has [s2]"),
        (ALL_OF_IT.replace("VV", "VH"), [S2_ENTRY, RADAR_ENTRY], "RENDERER_EXCEPTION",
         f"Collection 'byoc-{RADAR}' has no band 'VH'."),
        (one_band("VV", ", units: 'REFLECTANCE'"), [RADAR_ENTRY], "RENDERER_EXCEPTION",
         "requested in unsupported units 'REFLECTANCE'! Supported units for this band: [DN]"),
        (one_band("VV"), [{"type": "byoc-unknown"}], "COMMON_BAD_PAYLOAD", "'byoc-unknown' is not in the archive"),
        (ALL_OF_IT, [S2_ENTRY, RADAR_ENTRY | {"type": "batch-x"}], "COMMON_BAD_PAYLOAD", "'batch-x' is not in"),
        (one_band("VV"), [{"type": "byoc/../x"}], "COMMON_BAD_PAYLOAD", "'byoc/../x' is no collection"),
        (one_band("VV"), [], "COMMON_BAD_PAYLOAD", "at least 1"),
        (ALL_OF_IT, [S2_ENTRY, S2_ENTRY], "COMMON_BAD_PAYLOAD", "the id 's2' stands for several collections"),
    ],
)  # fmt: skip
def test_a_request_for_what_there_is_not_is_answered_with_400_and_its_reason(
    hub: LocalHub, script: str, data: list[dict[str, Any]], code: str, text: str
) -> None:
    answer = post(hub, body(script, *data))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, code)
    assert text in error["message"]


def test_the_scripts_author_is_told_of_pixels_with_another_number_of_values(made: Made, tmp_path: Path) -> None:
    script = one_band("B04", ", units: 'DN'").replace("[s.B04]", "s.B04 > 4000 ? [1, 2] : [1]")
    payload = body(script, S2_ENTRY | {"dataFilter": {"mosaickingOrder": "leastRecent"}})
    request = parse_process_request(payload | {"output": payload["output"] | {"width": 60, "height": 50}})
    task = ProcessTask(request, request.output.files, ArchiveSource(made.folder), "test", tmp_path, seconds=60)
    (note,) = process(task).notes
    wrong = np.count_nonzero(made.red[0] > 4000)
    assert wrong > 1000
    assert note == (
        f"Output 'default': {wrong:,} pixels returned another number of values than the declared 1; "
        "missing ones are 0, surplus ones are dropped."
    )


class Batch:
    """Batch requests over the whole place, and over one beside it where there is no scene."""

    def __init__(self, hub: LocalHub, s3: SeaweedFS, files: s3fs.S3FileSystem, bucket: str, features: str) -> None:
        self.hub, self.client = hub, client_of(hub)
        self._s3, self._files, self._bucket, self._features = s3, files, bucket, features

    def ended(self, script: str, *data: Any) -> BatchProcessRequest:
        """A request when it has ended."""
        client = self.client
        responses = [SentinelHubRequest.output_response("default", MimeType.TIFF)]
        created = client.create(
            {"input": {"bounds": {}, "data": list(data)}, "evalscript": script, "output": {"responses": responses}},
            client.geopackage_input(access(self._s3, self._features)),
            client.raster_output(access(self._s3, f"s3://{self._bucket}/<tileName>.tif")),
        )
        client.start_job(created)
        return wait_for(client, created)

    def image(self) -> NDArray[Any]:
        """The delivered raster of the place."""
        content = self._files.cat_file(f"{self._bucket}/here.tif")
        with rasterio.MemoryFile(content) as memory, memory.open() as dataset:
            return np.moveaxis(dataset.read(), 0, -1)


@pytest.fixture
def batch(hub: LocalHub, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path) -> Batch:
    west, south, east, north = PLACE.bounds
    shapes = [shapely.box(west, south, east, north), shapely.box(west + 5000, south, east + 5000, north)]
    columns = {"id": [1, 2], "identifier": ["here", "beside"], "resolution": [10.0, 10.0]}
    table = gpd.GeoDataFrame(columns, geometry=shapes, crs="EPSG:32633")
    return Batch(hub, s3, s3_files, bucket, upload_grid(table, s3_files, bucket, tmp_path))


def test_a_batch_request_fuses_collections(batch: Batch, s2: DataCollection, radar: DataCollection, made: Made) -> None:
    first = source(s2, identifier="s2", mosaicking_order=MosaickingOrder.LEAST_RECENT)
    done = batch.ended(ALL_OF_IT, first, source(radar, identifier="radar"))
    assert done.status.value == "DONE"
    np.testing.assert_array_equal(batch.image(), all_of_it(made))
    tiles = remembered(batch.hub, done)
    assert (tiles["beside"].error, tiles["beside"].cost_pu) == ("No data", 0)
    assert tiles["here"].cost_pu == pytest.approx(3000 / 512**2 * 2 / 3 * 2 * 2 * 2)  # too small for the discount
    asked = task_of(batch.hub, done)["request"]["processRequest"]["input"]["data"]
    assert [entry["type"] for entry in asked] == ["sentinel-2-l1c", f"byoc-{RADAR}"]


def test_the_log_tells_once_a_job_what_its_tiles_have_to_say_of_the_script(batch: Batch, s2: DataCollection) -> None:
    script = one_band("B04", ", units: 'DN'").replace("[s.B04]", "[s.B04, 1]")
    done = batch.ended(script, source(s2))
    lines = batch.hub.log_path.read_text().splitlines()
    (line,) = (line for line in lines if done.request_id in line and "another number of values" in line)
    assert "Output 'default': 3,000 pixels returned" in line
    assert "Tiles with such a note: 1" in line


def test_a_tile_has_data_when_one_of_its_collections_has(
    batch: Batch, s2: DataCollection, radar: DataCollection
) -> None:
    script = ALL_OF_IT.replace("return [", "if (!s2) return [1, 2, samples.radar.length, 0, 0]; return [")
    never = source(s2, identifier="s2", time_interval=("2019-01-01", "2019-01-02"))
    done = batch.ended(script, never, source(radar, identifier="radar"))
    assert remembered(batch.hub, done)["here"].error is None
    np.testing.assert_array_equal(batch.image(), np.broadcast_to([1, 2, 2, 0, 0], (50, 60, 5)))


@pytest.mark.parametrize(
    ("types", "script", "text"),
    [
        (["S2L1C", "byoc-unknown"], ALL_OF_IT, "Collection 'byoc-unknown' is not in the archive"),
        (["S2L1C", f"byoc-{RADAR}"], ALL_OF_IT.replace('"VV"', '"HH"'), f"'byoc-{RADAR}' has no band 'HH'."),
        (["S2L1C"], ALL_OF_IT, "asks for datasource 'radar'; the request has [s2]"),
    ],
)
def test_the_analysis_fails_with_the_reason_when_a_collection_lacks_something(
    batch: Batch, types: list[str], script: str, text: str
) -> None:
    entries = [{"type": kind, "id": name} for kind, name in zip(types, ("s2", "radar"), strict=False)]
    done = batch.ended(script, *entries)
    assert done.status.value == "FAILED"
    assert text in task_of(batch.hub, done)["error"]
