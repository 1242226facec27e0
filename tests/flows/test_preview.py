"""``eopatch-flow preview`` as a person calls it, and its prices as localhub charges them."""

import math
import re
from pathlib import Path

import pytest
import shapely

from flows.preview import Preview, preview, preview_text, read_wish
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tasks.batch import process_request
from tasks.errors import InvalidInput
from tests.flows.test_cli import call
from tests.localhub.batch_requests import access, client_of, wait_for
from tests.localhub.watching import balance, remembered, set_balance
from tests.tasks.orbits import BANDS

BBOX, PERIOD = (15.795, 46.335, 16.02, 46.475), "2019-06-01/2019-06-30"
IN_WORDS = ",".join(map(str, BBOX))


@pytest.fixture(autouse=True)
def in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SH_CLIENT_ID", raising=False)
    monkeypatch.delenv("SH_CLIENT_SECRET", raising=False)


def written(mosaicking: str, *, sample_type: str = "FLOAT32", more: str = "", bands: tuple[str, ...] = BANDS) -> str:
    Path("script.js").write_text(
        f"//VERSION=3\nfunction setup() {{ return {{input: {list(bands)}, mosaicking: '{mosaicking}', "
        f"output: {{bands: 1, sampleType: '{sample_type}'}}}}; }}\n"
        f"function evaluatePixel(samples) {{ return [1]; }}\n{more}\n"
    )
    return "script.js"


def previewed(hub: LocalHub, script: str, **options: object) -> Preview:
    usual = {"script": script, "bbox": IN_WORDS, "period": PERIOD, "resolution": 20, "size": 32}
    return preview(read_wish(usual | {"service": {"base_url": hub.base_url}} | options))


def keeping(days: int) -> str:
    return (
        "function preProcessScenes(collections) { collections.scenes.orbits = "
        f"collections.scenes.orbits.slice(0, {days}); return collections; }}"
    )


@pytest.mark.parametrize("mosaicking", ["ORBIT", "SIMPLE"])
def test_the_price_of_the_area_is_the_bill_of_the_batch_job(
    orbits_hub: LocalHub, s3: SeaweedFS, bucket: str, mosaicking: str
) -> None:
    found = previewed(orbits_hub, written(mosaicking), max_cloud_cover=80)
    bill_pu, tiles_pu = billed(orbits_hub, s3, bucket, found)
    price = found.batch_price
    assert (price.low, price.likely, price.high) == pytest.approx((bill_pu, bill_pu, bill_pu))
    assert (bill_pu > 100) == (mosaicking != "SIMPLE")
    assert found.process_pu == pytest.approx(3 * tiles_pu)  # Batch costs a third


def test_the_bill_lies_between_the_prices_where_the_script_leaves_out_scenes(
    orbits_hub: LocalHub, s3: SeaweedFS, bucket: str
) -> None:
    found = previewed(orbits_hub, written("ORBIT", more=keeping(12)), max_cloud_cover=80)  # tiles have 10 to 17
    bill_pu, _ = billed(orbits_hub, s3, bucket, found)
    assert 100 == found.batch_price.low < bill_pu < found.batch_price.high


def billed(hub: LocalHub, s3: SeaweedFS, bucket: str, found: Preview) -> tuple[float, float]:
    """What a batch job for the same area costs: the bill, and the sum of its tiles."""
    client = client_of(hub)
    days = found.wish.period.start, found.wish.period.end
    request = client.create(
        process_request(shapely.box(*BBOX), "sentinel-2-l1c", *days, 80, found.script),
        client.tiling_grid_input(1, 20),
        client.raster_output(access(s3, f"s3://{bucket}/<tileName>/<outputId>.<format>")),
    )
    client.start_job(request)
    done = wait_for(client, request, seconds=120)
    charged = remembered(hub, request)
    assert (done.status.value, set(charged)) == ("DONE", {tile.name for tile in found.tiles})
    return done.cost_PU, math.fsum(tile.cost_pu for tile in charged.values())


@pytest.mark.parametrize(
    ("mosaicking", "more", "kept"), [("ORBIT", "", 10), ("ORBIT", keeping(4), 4), ("TILE", "", 10), ("SIMPLE", "", 1)]
)
def test_the_window_costs_what_the_service_says_and_takes(
    orbits_hub: LocalHub, mosaicking: str, more: str, kept: int
) -> None:
    set_balance(orbits_hub, 1000)
    try:
        found = previewed(orbits_hub, written(mosaicking, more=more))
        spent = 1000 - float(balance(orbits_hub) or 0)
    finally:
        set_balance(orbits_hub, None)
    assert found.spent_pu == pytest.approx(spent)
    assert found.window_samples == (1 if mosaicking == "SIMPLE" else 10)
    assert found.spent_pu == pytest.approx(0.01 * len(BANDS) / 3 * 2 * kept)  # least area, bands, floats, samples
    assert found.spent_pu == pytest.approx(found.window_pu * kept / found.window_samples)
    assert ("kept 4 of 10 samples" in preview_text(found)) == bool(more)


def test_the_files_it_writes_and_the_lines_it_prints(orbits_hub: LocalHub) -> None:
    Path("red.js").write_text(
        "//VERSION=3\nfunction setup() { return {input: ['B04'], output: {bands: 3}}; }\n"
        "function evaluatePixel(s) { return [s.B04, s.B04, 0]; }\n"
    )
    answer = call(
        "preview", "red.js", "--bbox", IN_WORDS, "--period", PERIOD, "--resolution", "20", "--size", "64",
        "--base-url", orbits_hub.base_url,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    lines = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in answer.stdout.splitlines())
    assert lines["Picture"] == "preview-red.png"
    assert Path("preview-red.png").read_bytes().startswith(b"\x89PNG")
    assert lines["Window"] == "64 x 64 pixels of 20 m near 15.9075, 46.4050 (EPSG:32633, tile 33TWM_6_6)"
    assert lines["Output"] == "'default', 3 bands of AUTO, as the service drew it"
    assert lines["Price"] == "0.0052083 PU spent on the window, as the published rule says"
    assert lines["Whole area"] == "4 tiles of grid 1, 19 acquisitions, 1 sample a tile"
    assert lines["by Batch"] == "100.00 PU (the least that a request costs)"
    assert lines["by Process"] == "1.27 PU for the same tiles"


# ---- what is wrong is told, and nothing is bought ----


def test_a_script_that_fails_is_told_with_its_line(orbits_hub: LocalHub) -> None:
    Path("bad.js").write_text(
        "//VERSION=3\nfunction setup() { return {input: ['B04'], output: {bands: 1}}; }\n"
        "function evaluatePixel(s) {\n  return [s.B04.x.y];\n}\n"
    )
    with pytest.raises(InvalidInput, match=r"(?s)evalscript.js:4: TypeError.*return \[s.B04.x.y\]"):
        previewed(orbits_hub, "bad.js")
    assert not list(Path().glob("*.png"))


def test_a_localhub_that_is_not_running_is_told_with_how_to_start_it() -> None:
    answer = call(
        "preview", written("SIMPLE"), "--bbox", IN_WORDS, "--period", PERIOD, "--base-url", "http://127.0.0.1:9"
    )
    assert (answer.returncode, "Traceback" in answer.stderr) == (5, False)
    assert "If localhub is not running at http://127.0.0.1:9, start it with 'eopatch-flow localhub'." in answer.stderr


def test_missing_credentials_of_the_real_service_are_told_before_anything_is_sent() -> None:
    wish = {"script": written("SIMPLE"), "bbox": IN_WORDS, "period": PERIOD}
    with pytest.raises(InvalidInput, match=r"There are no credentials for https://services.sentinel-hub.com"):
        preview(read_wish(wish | {"service": {"base_url": "https://services.sentinel-hub.com"}}))
    with pytest.raises(InvalidInput, match="use https"):
        preview(read_wish(wish | {"service": {"base_url": "http://services.sentinel-hub.com"}}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bbox": "15,46,14"}, "--bbox: W,S,E,N in degrees are needed"),
        ({"bbox": "a,b,c,d"}, "--bbox: W,S,E,N in degrees are needed"),
        ({"bbox": "16,46,15,47"}, "west < east and south < north"),
        ({"bbox": "nan,46,15,47"}, "west < east and south < north"),
        ({"period": "2019-06-01"}, "--period: first and last day are needed, such as 2019-06-01/2019-08-31"),
        ({"period": "2019-06-01/June"}, "--period: Input should be a valid date"),
        ({"period": "2019-06-30/2019-06-01"}, "ends on 2019-06-01, before it starts on 2019-06-30"),
        ({"at": "15"}, "--at: LON,LAT in degrees are needed"),
        ({"at": "1,2"}, "--at: the point 1, 2 lies outside of the bbox; give one within"),
        ({"size": 2501}, "--size: Input should be less than or equal to 2500"),
        ({"collection": "landsat"}, "--collection: Input should be 'sentinel-2-l1c'"),
        ({"grid": 6}, "--grid: Input should be 0, 1 or 2"),
        ({"mosaicking_order": "best"}, "--mosaicking-order: Input should be 'mostRecent'"),
        ({"service": {"base_url": "ftp://x"}}, "--base-url: String should match pattern"),
        ({"resolution": 15}, "Resolution 15 m is not offered by tiling grid 1"),
        ({"png": "nowhere/x.png"}, "--png: the folder nowhere does not exist"),
        ({"output": "b"}, "The script has no output 'b'; choose one of default"),
        ({"script": "missing.js"}, "The evalscript missing.js cannot be read"),
        (
            {"period": "2018-06-01/2018-06-30"},
            "no acquisition of sentinel-2-l1c from 2018-06-01 to 2018-06-30 in the wi",
        ),
        ({"max_cloud_cover": 5}, "with at most 5 % of clouds in the window, and 0 in the area; nothing was bought"),
    ],
)
def test_a_wrong_option_is_told_and_nothing_is_bought(
    orbits_hub: LocalHub, changes: dict[str, object], text: str
) -> None:
    set_balance(orbits_hub, 1000)
    try:
        with pytest.raises(InvalidInput, match=re.escape(text)):
            previewed(orbits_hub, **({"script": written("ORBIT")} | changes))  # type: ignore[arg-type]
        assert balance(orbits_hub) == 1000
    finally:
        set_balance(orbits_hub, None)
