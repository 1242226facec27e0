"""The Process API gives the pixels that rasterio gives, in every format, to the vendor's own client."""

import io
import json
import math
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import requests
from numpy.typing import NDArray
from rasterio.features import geometry_mask
from rasterio.transform import array_bounds, from_bounds
from rasterio.warp import Resampling, reproject
from sentinelhub import CRS, BBox, DataCollection, Geometry, MimeType, SentinelHubRequest, SHConfig
from sentinelhub.exceptions import DownloadFailedException
from shapely.geometry import MultiPolygon, Polygon, box

from localhub.archive import ArchiveSource
from localhub.engine import EvalscriptError
from localhub.process import ProcessTask, process
from localhub.process_payload import parse_process_request
from localhub.server import LocalHub
from tests.localhub.batch_requests import RED, client_of, session_of

NEWEST = "S2A_33TVM_20150909T100017"
SUMMER = ("2015-07-01", "2015-09-30")
FALSE_COLOUR = """//VERSION=3
function setup() {
  return {input: ["B08", "B04", "B03", "dataMask"], output: {bands: 4}};
}
function evaluatePixel(s) { return [2.5 * s.B08, 2.5 * s.B04, 2.5 * s.B03, s.dataMask]; }
"""
TWO_AND_DATA = """//VERSION=3
function setup() {
  return {
    input: [{bands: ["B04", "B08"], units: "DN"}],
    output: [{id: "red", bands: 1, sampleType: "UINT16"}, {id: "ndvi", bands: 1, sampleType: "FLOAT32"}],
    mosaicking: "ORBIT"
  };
}
function evaluatePixel(samples) {
  const s = samples[0];
  return {red: [s.B04], ndvi: [(s.B08 - s.B04) / (s.B08 + s.B04)]};
}
function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
  outputMetadata.userData = {dates: scenes.orbits.map(orbit => orbit.dateFrom)};
}
"""
VALID = """//VERSION=3
function setup() { return {input: ["dataMask"], output: {bands: 1, sampleType: "UINT8"}}; }
function evaluatePixel(s) { return [s.dataMask]; }
"""


@pytest.fixture(scope="module")
def config(hub: LocalHub) -> SHConfig:
    return client_of(hub).config


@pytest.fixture(scope="module")
def collection(hub: LocalHub) -> DataCollection:
    """Sentinel-2 L1C of this localhub: the vendor's own definition leads to the vendor's own address."""
    return DataCollection.SENTINEL2_L1C.define_from("L1C_OF_LOCALHUB", service_url=hub.base_url)


@pytest.fixture(scope="module")
def web(hub: LocalHub) -> requests.Session:
    return session_of(hub)


@pytest.fixture(scope="module")
def newest(scenes: Path) -> dict[str, NDArray[Any]]:
    """The newest scene's bands as stored."""
    found = {}
    for path in (scenes / NEWEST).glob("*.tif"):
        with rasterio.open(path) as dataset:
            found[path.stem] = dataset.read(1)
    return found


@pytest.fixture(scope="module")
def scene_box(scene_profile: Any) -> BBox:
    """The scenes' own grid: 100 columns, 101 rows."""
    bounds = array_bounds(scene_profile["height"], scene_profile["width"], scene_profile["transform"])
    return BBox(bounds, CRS.UTM_33N)


class Asker:
    """Requests of the vendor's client for the summer of 2015."""

    def __init__(self, config: SHConfig, collection: DataCollection) -> None:
        self._config = config
        self._collection = collection

    def __call__(self, evalscript: str, *formats: MimeType | tuple[str, MimeType], **more: Any) -> Any:
        responses = [
            SentinelHubRequest.output_response(*(entry if isinstance(entry, tuple) else ("default", entry)))
            for entry in formats
        ]
        data = {"time_interval": SUMMER, **more.pop("data", {})}
        request = SentinelHubRequest(
            evalscript,
            [SentinelHubRequest.input_data(self._collection, **data)],
            responses,
            config=self._config,
            **more,
        )
        (answer,) = request.get_data(decode_data=more.get("decode_data", True))
        return answer


@pytest.fixture(scope="module")
def ask(config: SHConfig, collection: DataCollection) -> Asker:
    return Asker(config, collection)


def body(evalscript: str = RED, output: Any = None, **bounds: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "input": {
            "bounds": bounds or {"bbox": [14.555, 45.868, 14.560, 45.872]},
            "data": [{"type": "sentinel-2-l1c"}],
        },
        "evalscript": evalscript,
        "output": {"width": 20, "height": 20, "responses": [{"format": {"type": "image/tiff"}}]},
    }
    return whole | ({"output": output} if output is not None else {})


def post(hub: LocalHub, web: requests.Session, payload: Any, accept: str = "*/*") -> requests.Response:
    return web.post(f"{hub.base_url}/api/v1/process", json=payload, headers={"Accept": accept}, timeout=60)


def test_the_scenes_own_grid_gives_the_files_pixels(
    ask: Asker, scene_box: BBox, newest: dict[str, NDArray[Any]]
) -> None:
    red = ask(RED, MimeType.TIFF, bbox=scene_box, size=(100, 101))
    assert red.dtype == np.uint16
    np.testing.assert_array_equal(red, newest["B04"])


@pytest.mark.parametrize(
    ("bounds", "crs", "size"),
    [
        ((14.5500, 45.8650, 14.5650, 45.8760), CRS.WGS84, (150, 121)),
        ((1620000, 5760000, 1621700, 5762000), CRS.POP_WEB, (90, 110)),
        ((465100, 5079200, 466300, 5080300), CRS.UTM_33N, (240, 55)),
        ((1000, 5080000, 3000, 5082000), CRS.UTM_34N, (50, 40)),
    ],
    ids=["degrees", "web Mercator", "UTM", "next UTM zone"],
)
def test_other_grids_agree_with_gdals_warp(
    ask: Asker, scenes: Path, bounds: tuple[float, ...], crs: CRS, size: tuple[int, int]
) -> None:
    red = ask(RED, MimeType.TIFF, bbox=BBox(bounds, crs), size=size)
    with rasterio.open(scenes / NEWEST / "B04.tif") as dataset:
        expected = np.zeros(size[::-1], np.uint16)
        grid = {"dst_transform": from_bounds(*bounds, *size), "dst_crs": crs.ogc_string()}
        reproject(rasterio.band(dataset, 1), expected, resampling=Resampling.nearest, **grid)
    np.testing.assert_array_equal(red, expected)
    assert (expected > 0).any() == (crs is not CRS.UTM_34N)


def test_a_tiff_lies_where_it_was_asked_for(hub: LocalHub, web: requests.Session) -> None:
    answer = post(hub, web, body(RED.replace('"UINT16"', '"UINT16", nodataValue: 7')))
    assert answer.headers["content-type"] == "image/tiff"
    with rasterio.open(io.BytesIO(answer.content)) as dataset:
        np.testing.assert_allclose(dataset.bounds, (14.555, 45.868, 14.560, 45.872))
        assert (dataset.crs.to_epsg(), dataset.shape, dataset.nodata) == (4326, (20, 20), 7)


def test_a_resolution_gives_the_size_in_the_unit_of_the_crs(ask: Asker, scene_box: BBox) -> None:
    assert ask(RED, MimeType.TIFF, bbox=scene_box, resolution=(20, 10)).shape == (101, 50)
    degrees = BBox((14.555, 45.868, 14.560, 45.872), CRS.WGS84)
    assert ask(RED, MimeType.TIFF, bbox=degrees, resolution=(0.0005, 0.0001)).shape == (40, 10)


def test_the_size_is_256_and_the_format_png_unless_asked_for(hub: LocalHub, web: requests.Session) -> None:
    answer = post(hub, web, body(FALSE_COLOUR, {}))
    assert answer.headers["content-type"] == "image/png"
    with rasterio.open(io.BytesIO(answer.content)) as dataset:
        assert (dataset.driver, dataset.count, dataset.shape) == ("PNG", 4, (256, 256))


def test_auto_stretches_0_to_1_and_the_fourth_band_is_alpha(
    ask: Asker, scene_box: BBox, newest: dict[str, NDArray[Any]]
) -> None:
    wider = BBox((scene_box.min_x - 2000, *scene_box.lower_left[1:], *scene_box.upper_right), CRS.UTM_33N)
    image = ask(FALSE_COLOUR, MimeType.PNG, bbox=wider, resolution=(20, 20))
    assert image.shape[2] == 4
    assert set(np.unique(image[..., 3])) == {0, 255}
    image = ask(FALSE_COLOUR, MimeType.PNG, bbox=scene_box, size=(100, 101))
    for position, band in enumerate(("B08", "B04", "B03")):
        stretched = np.clip(2.5 * newest[band] * 0.0001, 0, 1) * 255
        np.testing.assert_array_equal(image[..., position], np.floor(stretched + 0.5))


def test_a_png_holds_16_bits(ask: Asker, scene_box: BBox, newest: dict[str, NDArray[Any]]) -> None:
    red = ask(RED.replace('"UINT16"', '"UINT16", nodataValue: 0'), MimeType.PNG, bbox=scene_box, size=(100, 101))
    np.testing.assert_array_equal(red, newest["B04"])
    assert red.max() > 255


def test_a_tiff_of_many_bands_has_them_last_for_the_client(
    ask: Asker, scene_box: BBox, newest: dict[str, NDArray[Any]]
) -> None:
    bands = ["B01", "B02", "B03", "B8A", "B12"]
    script = RED.replace('["B04"]', json.dumps(bands)).replace("bands: 1", "bands: 5")
    script = script.replace("[sample.B04]", f"[{', '.join(f'sample.{band}' for band in bands)}]")
    for sample_type in ("UINT16", "FLOAT32"):
        image = ask(script.replace("UINT16", sample_type), MimeType.TIFF, bbox=scene_box, size=(100, 101))
        np.testing.assert_array_equal(image, np.stack([newest[band] for band in bands], axis=-1))


def test_a_jpeg_has_the_quality_asked_for(ask: Asker, hub: LocalHub, web: requests.Session, scene_box: BBox) -> None:
    script = FALSE_COLOUR.replace("bands: 4", "bands: 3").replace(", s.dataMask]", "]")
    exact = ask(script, MimeType.PNG, bbox=scene_box, size=(100, 101)).astype(int)
    assert np.abs(ask(script, MimeType.JPG, bbox=scene_box, size=(100, 101)) - exact).mean() < 10

    def answered(**quality: int) -> bytes:
        jpeg = {"responses": [{"format": {"type": "image/jpeg", **quality}}]}
        return post(hub, web, body(script, jpeg)).content

    coarse, default, fine = answered(quality=10), answered(), answered(quality=100)
    assert len(coarse) < len(default) < len(fine)
    assert default == answered(quality=90)
    assert default.startswith(b"\xff\xd8\xff")


def test_several_responses_come_as_a_tar(ask: Asker, scene_box: BBox, newest: dict[str, NDArray[Any]]) -> None:
    files = ask(
        TWO_AND_DATA,
        ("red", MimeType.PNG),
        ("ndvi", MimeType.TIFF),
        ("userdata", MimeType.JSON),
        bbox=scene_box,
        size=(100, 101),
    )
    assert files.keys() == {"red.png", "ndvi.tif", "userdata.json"}
    np.testing.assert_array_equal(files["red.png"], newest["B04"])
    near, red = newest["B08"].astype(float), newest["B04"].astype(float)
    np.testing.assert_array_equal(files["ndvi.tif"], ((near - red) / (near + red)).astype(np.float32))
    assert files["userdata.json"]["dates"][0] == "2015-09-09T00:00:00Z"
    assert len(files["userdata.json"]["dates"]) == 5


def test_userdata_alone_is_json(ask: Asker, scene_box: BBox) -> None:
    data = ask(TWO_AND_DATA, ("userdata", MimeType.JSON), bbox=scene_box, size=(5, 5))
    assert len(data["dates"]) == 5


def test_the_accept_header_goes_before_the_format(hub: LocalHub, web: requests.Session) -> None:
    asked = post(hub, web, body(), "image/png")
    assert (asked.headers["content-type"], asked.content[:4]) == ("image/png", b"\x89PNG")
    packed = post(hub, web, body(), "application/x-tar")
    assert packed.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(packed.content)) as archive:
        assert archive.getnames() == ["default.tif"]


OUTER = Polygon([(465300, 5079300), (466100, 5079500), (465900, 5080200), (465250, 5080100)])
WITH_HOLE = MultiPolygon(
    [OUTER.difference(box(465500, 5079600, 465700, 5079800)), box(466130, 5080150, 466160, 5080190)]
)


@pytest.mark.parametrize("area", [OUTER, WITH_HOLE], ids=["polygon", "multipolygon with a hole"])
def test_outside_of_the_geometry_there_is_no_data(ask: Asker, area: Any, scene_box: BBox) -> None:
    alone = ask(VALID, MimeType.TIFF, geometry=Geometry(area, CRS.UTM_33N), size=(90, 80))
    inside = geometry_mask([area], (80, 90), from_bounds(*area.bounds, 90, 80), invert=True)
    np.testing.assert_array_equal(alone, inside)
    both = ask(VALID, MimeType.TIFF, geometry=Geometry(area, CRS.UTM_33N), bbox=scene_box, size=(100, 101))
    inside = geometry_mask([area], (101, 100), from_bounds(*scene_box, 100, 101), invert=True)
    np.testing.assert_array_equal(both, inside)
    assert 0 < both.mean() < 1


def test_filter_and_order_choose_the_scene(ask: Asker, scenes: Path, scene_box: BBox) -> None:
    oldest, *_ = sorted(path.parent for path in scenes.glob("*/B04.tif"))
    red = ask(
        RED, MimeType.TIFF, bbox=scene_box, size=(100, 101), data={"mosaicking_order": "leastRecent", "maxcc": 0.5}
    )
    with rasterio.open(oldest / "B04.tif") as dataset:
        np.testing.assert_array_equal(red, dataset.read(1))


def test_without_scenes_the_script_sees_zeros_or_no_samples(ask: Asker, scene_box: BBox) -> None:
    winter = {"time_interval": ("2015-01-01", "2015-01-31")}
    assert not ask(VALID, MimeType.TIFF, bbox=scene_box, size=(9, 8), data=winter).any()
    counting = TWO_AND_DATA.replace("const s = samples[0];", "return {red: [samples.length], ndvi: [7]};")
    files = ask(counting, ("red", MimeType.TIFF), ("ndvi", MimeType.TIFF), bbox=scene_box, size=(9, 8), data=winter)
    assert (files["red.tif"] == 0).all()
    assert (files["ndvi.tif"] == 7).all()


@pytest.mark.parametrize(
    ("script", "types", "pixels", "price"),
    [
        (RED, ["image/tiff"], (512, 512), 1 / 3),
        (FALSE_COLOUR, ["image/png"], (1024, 512), 2.0),
        (TWO_AND_DATA, ["image/tiff", "image/tiff"], (512, 512), 2 / 3 * 2 * 5),
        (VALID, ["image/tiff"], (10, 10), 0.005),
        (FALSE_COLOUR, ["image/png"], (10, 10), 0.01),
    ],
    ids=["one band", "three bands and dataMask", "five samples, 32 bits", "cheapest", "smallest area"],
)
def test_the_price_follows_the_published_formula(
    hub: LocalHub, web: requests.Session, script: str, types: list[str], pixels: tuple[int, int], price: float
) -> None:
    names = ["red", "ndvi"] if len(types) > 1 else ["default"]
    responses = [{"identifier": name, "format": {"type": kind}} for name, kind in zip(names, types, strict=True)]
    output = {"width": pixels[0], "height": pixels[1], "responses": responses}
    answer = post(hub, web, body(script, output), "application/tar")
    assert math.isclose(float(answer.headers["x-processingunits-spent"]), price)


@pytest.fixture
def set_balance(hub: LocalHub, web: requests.Session) -> Iterator[Callable[[float | None], None]]:
    """Gives the account a balance; it has one without end again afterwards."""

    def put(balance_pu: float | None) -> None:
        url = f"{hub.base_url}/admin/accounts/{hub.settings.client_id}"
        assert web.put(url, json={"balance_pu": balance_pu}).json()["balance_pu"] == balance_pu

    yield put
    put(None)


def test_the_account_pays_for_what_succeeds_until_nothing_is_left(
    hub: LocalHub, web: requests.Session, set_balance: Callable[[float | None], None]
) -> None:
    def balance() -> float:
        (account,) = web.get(f"{hub.base_url}/admin/accounts").json()
        left: float = account["balance_pu"]
        return left

    set_balance(0.5)
    answer = post(hub, web, body(RED))
    assert math.isclose(balance(), 0.5 - float(answer.headers["x-processingunits-spent"]))
    left = balance()
    assert post(hub, web, body(RED.replace("B04", "B99"))).status_code == 400
    assert balance() == left
    set_balance(0)
    refused = post(hub, web, body(RED))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "ACCESS_INSUFFICIENT_PROCESSING_UNITS")


def _wrong(**changes: Any) -> dict[str, Any]:
    return body(RED, {"responses": [{"format": {"type": "image/tiff"}}], **changes})


@pytest.mark.parametrize(
    ("payload", "code", "text"),
    [
        (body(""), "COMMON_BAD_PAYLOAD", "Missing or empty evalscript."),
        ({"evalscript": RED}, "COMMON_BAD_PAYLOAD", "input: Field required"),
        (body(properties={}), "COMMON_BAD_PAYLOAD", "bounds needs a bbox or a geometry"),
        (body(bbox=[14, 45, 14, 46]), "COMMON_BAD_PAYLOAD", "the area is empty"),
        (_wrong(width=2501), "COMMON_BAD_PAYLOAD", "less than or equal to 2500"),
        (_wrong(width=0), "COMMON_BAD_PAYLOAD", "greater than or equal to 1"),
        (_wrong(width="10"), "COMMON_BAD_PAYLOAD", "valid integer"),
        (_wrong(resx=1e-6, resy=1), "COMMON_BAD_PAYLOAD", "`width = 5000`, calculated from resx, is larger"),
        (_wrong(resx=1), "COMMON_BAD_PAYLOAD", "resx and resy go together"),
        (_wrong(resx=1, resy=1, width=5), "COMMON_BAD_PAYLOAD", "width and height exclude resx and resy"),
        (_wrong(responses=[{}, {}]), "COMMON_BAD_PAYLOAD", "identifiers repeat: default, default"),
        (_wrong(responses=[{"format": {"type": "image/gif"}}]), "COMMON_BAD_PAYLOAD", "'image/png'"),
        (_wrong(responses=[{"identifier": "userdata"}]), "COMMON_BAD_PAYLOAD", "application/json goes with"),
        (body(TWO_AND_DATA, {"responses": [{"identifier": "red"}, {"identifier": "ndvi"}]}), "COMMON_BAD_PAYLOAD",
         "2 responses come in an archive: set the header Accept to application/tar"),
        (body("function setup() {}"), "RENDERER_EXCEPTION", "VERSION=3"),
        (body(RED.replace("sample.B04", "sample.B04.x.y")), "RENDERER_EXCEPTION", "evalscript.js:5: TypeError"),
        (body(RED.replace("B04", "B99")), "RENDERER_EXCEPTION", "Collection 'S2L1C' has no band 'B99'."),
        (_wrong(responses=[{"identifier": "other"}]), "RENDERER_EXCEPTION", "outputs ['other'] that the script"),
        (body(RED.replace("UINT16", "FLOAT32"), {}), "RENDERER_EXCEPTION", "image/png does not hold"),
        (body(FALSE_COLOUR, {"responses": [{"format": {"type": "image/jpeg"}}]}), "RENDERER_EXCEPTION", "4 bands of"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_answered_with_400_and_its_reason(
    hub: LocalHub, web: requests.Session, payload: Any, code: str, text: str
) -> None:
    answer = post(hub, web, payload)
    error = answer.json()["error"]
    assert (answer.status_code, error["status"], error["code"]) == (400, 400, code)
    assert text in error["message"]
    assert "x-processingunits-spent" not in answer.headers


def test_the_clients_error_has_the_scripts_line(ask: Asker, scene_box: BBox) -> None:
    with pytest.raises(DownloadFailedException, match=r"evalscript\.js:5: ReferenceError: nothing is not defined"):
        ask(RED.replace("[sample.B04]", "[nothing]"), MimeType.TIFF, bbox=scene_box, size=(5, 5))


def test_a_collection_that_the_archive_lacks_is_refused(hub: LocalHub, web: requests.Session) -> None:
    payload = body()
    payload["input"]["data"][0]["type"] = "sentinel-2-l2a"
    answer = post(hub, web, payload)
    assert answer.status_code == 400
    assert "'sentinel-2-l2a' is not in the archive" in answer.json()["error"]["message"]


def test_a_body_in_parts_has_the_script_beside_it(hub: LocalHub, web: requests.Session) -> None:
    payload = body()
    script = payload.pop("evalscript")
    parts = {"request": (None, json.dumps(payload), "application/json"), "evalscript": (None, script)}
    answer = web.post(f"{hub.base_url}/process/v1", files=parts)
    assert answer.content == post(hub, web, body()).content


def test_a_request_needs_a_token(hub: LocalHub) -> None:
    assert requests.post(f"{hub.base_url}/api/v1/process", json=body(), timeout=10).status_code == 401


ENDLESS = RED.replace("return [sample.B04]", "while (true);")


@pytest.mark.parametrize("script", [ENDLESS, RED + "while (true);"], ids=["in a pixel", "at the top"])
def test_an_endless_script_ends_at_the_limit(scenes: Path, tmp_path: Path, script: str) -> None:
    request = parse_process_request(body(script))
    task = ProcessTask(request, request.output.files, ArchiveSource(scenes), "test", tmp_path, seconds=0.3)
    started = time.monotonic()
    with pytest.raises(EvalscriptError, match=r"ran longer than 0\.3 s"):
        process(task)
    assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_many_short_steps_end_at_the_limit_too(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localhub.process.BLOCK_BYTES", 1)
    slow = RED.replace("return [", "const end = Date.now() + 5; while (Date.now() < end); return [")
    request = parse_process_request(body(slow))
    task = ProcessTask(request, request.output.files, ArchiveSource(scenes), "test", tmp_path, seconds=0.3)
    with pytest.raises(EvalscriptError, match=r"ran longer than 0\.3 s"):
        process(task)


@pytest.fixture
def busy(hub: LocalHub) -> Iterator[list[requests.Response]]:
    """As many slow requests under way as there are workers, and more that wait for them."""
    slow = RED.replace("{\n  return", "{\n  const end = Date.now() + 1500; while (Date.now() < end);\n  return", 1)
    answers: list[requests.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(hub, session_of(hub), body(slow))), daemon=True)
        for _ in range(hub.settings.workers)
    ]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * len(threads)


def test_slow_scripts_do_not_hold_up_the_rest_of_the_api(
    hub: LocalHub, web: requests.Session, busy: list[requests.Response]
) -> None:
    asked = 0
    while not busy:
        started = time.monotonic()
        assert web.get(f"{hub.base_url}/api/v2/batch/tilinggrids").status_code == 200
        assert time.monotonic() - started < 1.4
        asked += 1
    assert asked > 2
