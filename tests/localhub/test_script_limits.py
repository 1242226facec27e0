"""What a script that goes beyond its limits does to its tile, analysis or request, and not to any other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import rasterio
import requests
import s3fs
from pydantic import ValidationError

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.batch_requests import RED, access, client_of, process_request, session_of, wait_for
from tests.localhub.watching import execution_rows

ENDLESS = "for (;;);"
GREEDY = "const kept = []; for (;;) kept.push(new Uint8Array(2 ** 26).fill(1));"
STUCK = "Array.prototype.indexOf.call({length: 2 ** 53 - 1}, 0);"


@pytest.fixture(scope="module")
def strict_hub(hub_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub with narrow limits."""
    folder = tmp_path_factory.mktemp("strict")
    limits = {"data_dir": folder, "script_seconds": 3.0, "worker_memory_mb": 512, "block_mb": 16, "feature_tries": 1}
    with LocalHub(hub_settings.model_copy(update=limits)) as running:
        yield running


@pytest.fixture(scope="module")
def first_reds(scenes: Path) -> list[int]:
    """The newest scene's red value of each of the six features' first pixel."""
    newest = max(scenes.glob("*/B04.tif"))
    with rasterio.open(next(scenes.glob("*20150909*/B04.tif"))) as dataset, rasterio.open(newest) as values:
        rows = values.read(1)
        return [int(rows[dataset.index(465305 + 100 * i, 5079595)]) for i in range(6)]


def test_a_script_that_misbehaves_on_some_tiles_makes_those_fatal_and_leaves_the_others(
    strict_hub: LocalHub,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
    first_reds: list[int],
) -> None:
    deeds = {first_reds[1]: ENDLESS, first_reds[3]: GREEDY, first_reds[4]: STUCK}
    assert [first_reds.count(red) for red in deeds] == [1, 1, 1]  # the script knows a tile by its first pixel
    cases = " ".join(f"case {red}: {deed} break;" for red, deed in deeds.items())
    known = f"first ??= sample.B04; switch (first) {{ {cases} }}"
    script = RED.replace("return [sample.B04]", f"{known} return [sample.B04]") + "let first;"
    client = client_of(strict_hub)
    request = client.create(
        process_request(script),
        client.geopackage_input(access(s3, six_features)),
        client.raster_output(access(s3, f"s3://{bucket}/o/<tileName>.tif")),
    )
    client.start_job(request)
    assert wait_for(client, request).status.value == "DONE"
    rows = execution_rows(s3_files, f"{bucket}/o/execution-{request.request_id}.sqlite")
    assert rows is not None
    assert {name for name, (status, _, delivered) in rows.items() if (status, delivered) == ("DONE", 1)} == {
        "f0", "f2", "f5"
    }  # fmt: skip
    failed = {name: error for name, (status, error, _) in rows.items() if status == "FATAL"}
    assert failed == {
        "f1": "Failed to evaluate script!\nevalscript.js:5: it ran longer than 3 s in evaluatePixel.",
        "f3": "Failed to evaluate script!\nevalscript.js:5: it used more than 0.5 GB of memory in evaluatePixel.",
        "f4": "Failed to evaluate script!\nevalscript.js: it ran longer than 3 s.",
    }


def test_a_setup_without_an_end_fails_the_analysis_with_its_words(
    strict_hub: LocalHub, s3: SeaweedFS, bucket: str, six_features: str
) -> None:
    client = client_of(strict_hub)
    request = client.create(
        process_request(RED.replace("return {input", f"{ENDLESS} return {{input")),
        client.geopackage_input(access(s3, six_features)),
        client.raster_output(access(s3, f"s3://{bucket}/<tileName>.tif")),
    )
    client.start_analysis(request)
    failed = wait_for(client, request)
    assert failed.status.value == "FAILED"
    assert failed.error == "Failed to evaluate script!\nevalscript.js:2: it ran longer than 3 s in setup."


@pytest.mark.parametrize(("deed", "text"), [(GREEDY, "0.5 GB of memory"), ("throw 7;", "evalscript.js:6: 7")])
def test_a_request_whose_script_misbehaves_is_answered_with_400_and_the_next_one_with_its_pixels(
    strict_hub: LocalHub, deed: str, text: str
) -> None:
    web = session_of(strict_hub)
    bad = answer(strict_hub, web, RED.replace("return [sample.B04]", f"\n{deed}"))
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "RENDERER_EXCEPTION")
    assert text in bad.json()["error"]["message"]
    assert answer(strict_hub, web, RED).status_code == 200


def test_a_worker_must_be_able_to_hold_its_blocks() -> None:
    with pytest.raises(ValidationError, match=r"memory_mb 1024 does not hold block_mb 512, .* choose 2048 or more"):
        Settings(data_dir=Path(), archive=Path(), worker_memory_mb=1024, block_mb=512)


def answer(hub: LocalHub, web: requests.Session, script: str) -> requests.Response:
    payload = {
        "input": {"bounds": {"bbox": [14.555, 45.868, 14.560, 45.872]}, "data": [{"type": "sentinel-2-l1c"}]},
        "evalscript": script,
        "output": {"width": 20, "height": 20, "responses": [{"format": {"type": "image/tiff"}}]},
    }
    return web.post(f"{hub.base_url}/api/v1/process", json=payload, timeout=60)
