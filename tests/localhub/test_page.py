"""The page of localhub and of its jobs: what it tells is what the API tells, and whatever it shows is shown as text."""

import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import requests
import s3fs
import shapely
from sentinelhub import BatchProcessClient, BatchProcessRequest

from localhub.api import faultwords
from localhub.faults import ApiFault, DatabaseFault, Faults, TileFault
from localhub.incidents import KEPT, Incident, Incidents
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tests.localhub.batch_requests import RED, access, body, process_request, wait_for
from tests.localhub.conftest import upload_grid

HOSTILE = """<script>alert(1)</script><img src=x onerror="alert(2)">'"&{{ 7 * 7 }}"""
PROCESS = "/api/v2/batch/process"
LOADING = ("src", "srcset", "href", "xlink:href", "action", "formaction", "poster")
"""Attributes from which a browser fetches or goes on."""
VOID = {"meta", "link", "input", "br", "img"}


class Document(HTMLParser):
    """A page as a browser takes it: its elements, and the text of all of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, str] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            self.raw[self._open[-1]] = data
        else:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture
def browser(hub: LocalHub) -> Iterator[requests.Session]:
    """A session with HTTP Basic, as a browser sends it."""
    with requests.Session() as session:
        session.auth = (hub.settings.client_id, hub.settings.client_secret.get_secret_value())
        session.headers["Accept"] = "text/html"
        yield session


def page_of(browser: requests.Session, hub: LocalHub, path: str = "/", **query: Any) -> Document:
    answer = browser.get(hub.base_url + path, params=query, timeout=20)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    return Document(answer.text)


def created(
    client: BatchProcessClient, s3: SeaweedFS, bucket: str, grid: str, script: str = RED, description: str = "of a test"
) -> BatchProcessRequest:
    return client.create(
        process_request(script),
        client.geopackage_input(access(s3, grid)),
        client.raster_output(access(s3, f"s3://{bucket}/out")),
        description=description,
    )


@pytest.mark.parametrize("path", ["/", "/jobs/any"])
def test_the_page_asks_a_browser_for_credentials(hub: LocalHub, path: str) -> None:
    for auth in (None, ("localhub", "wrong")):
        answer = requests.get(hub.base_url + path, auth=auth, headers={"Accept": "text/html"}, timeout=10)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_a_token_opens_the_page_too(hub: LocalHub, web: requests.Session) -> None:
    assert "Requests created" in page_of(web, hub).text


def test_the_page_says_what_a_client_needs_to_know(hub: LocalHub, browser: requests.Session, s3: SeaweedFS) -> None:
    text = page_of(browser, hub).text
    for part in (hub.base_url, hub.token_url, s3.endpoint_url, "sentinel-2-l1c: 5 scenes, 2015-07-11 to 2015-09-09"):
        assert part in text


def test_no_style_and_no_script_runs_but_the_pages_own(hub: LocalHub, browser: requests.Session) -> None:
    answer = browser.get(hub.base_url, timeout=10)
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
    document = Document(answer.text)
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(document.raw[kind].encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
        assert document.count(kind) == 1
    loaded = [attributes[name] for _, attributes in document.elements for name in LOADING if name in attributes]
    assert loaded
    assert not [url for url in loaded if re.match(r"[a-z+.-]+:|//", url or "") and not url.startswith("data:image/")]
    assert "url(" not in document.raw["style"]


def test_hostile_names_and_errors_are_shown_as_text(
    hub: LocalHub, browser: requests.Session, client: BatchProcessClient, s3: SeaweedFS, bucket: str, tmp_path: Path,
    s3_files: s3fs.S3FileSystem,
) -> None:  # fmt: skip
    name = """<img src=x onerror=alert(3)>"'"""
    table = gpd.GeoDataFrame(
        {"id": [1], "identifier": [name], "resolution": [10.0]},
        geometry=[shapely.box(465300, 5079500, 465400, 5079600)],
        crs="EPSG:32633",
    )
    script = RED.replace("return [sample.B04];", """throw new Error("<svg onload=alert(4)>");""")
    request = created(client, s3, bucket, upload_grid(table, s3_files, bucket, tmp_path), script, HOSTILE)
    client.start_job(request)
    wait_for(client, request)
    job = page_of(browser, hub, f"/jobs/{request.request_id}")
    for text in (HOSTILE, name, "Error: <svg onload=alert(4)>", "1 of 1 ended: 1 fatal"):
        assert text in job.text
    for document in (job, page_of(browser, hub), page_of(browser, hub, search=HOSTILE)):
        assert HOSTILE in document.text or any(attrs.get("value") == HOSTILE for _, attrs in document.elements)
        assert (document.count("script"), document.count("img")) == (1, 0)
        assert not [key for _, attrs in document.elements for key in attrs if key.startswith("on")]
    for secret in (s3.access_key, s3.secret_key):
        assert secret not in browser.get(f"{hub.base_url}/jobs/{request.request_id}", timeout=10).text


def test_a_job_is_told_as_the_api_tells_it(
    hub: LocalHub, browser: requests.Session, web: requests.Session, client: BatchProcessClient, s3: SeaweedFS,
    bucket: str, six_features: str,
) -> None:  # fmt: skip
    request = created(client, s3, bucket, six_features, description=f"six of {bucket}")
    before = page_of(browser, hub, f"/jobs/{request.request_id}").text
    assert "The tiles are known after the analysis." in before
    assert "nothing yet" in before
    client.start_job(request)
    wait_for(client, request)
    task = web.get(f"{hub.base_url}{PROCESS}/{request.request_id}", timeout=10).json()
    job = page_of(browser, hub, f"/jobs/{request.request_id}")
    times = [datetime.fromisoformat(task[key]).strftime("%Y-%m-%d %H:%M:%S") for key in ("created", "lastUpdated")]
    for part in (request.request_id, f"six of {bucket}", "DONE", "START", f"{task['costPU']:,.1f} PU", *times):
        assert part in job.text
    assert "6 of 6 ended: 6 done" in job.text
    for number in range(6):
        assert f"f{number} done" in job.text
    assert sum(attrs.get("class") == "tile done" and "d" in attrs for _, attrs in job.elements) == 6
    listed = page_of(browser, hub, search=bucket).text
    assert re.findall(r"\d+ / \d+", listed) == ["6 / 6"]


def test_the_files_that_a_job_page_names_are_in_the_bucket(
    hub: LocalHub, browser: requests.Session, client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem,
    bucket: str, six_features: str,
) -> None:  # fmt: skip
    request = created(client, s3, bucket, six_features)
    client.start_job(request)
    wait_for(client, request)
    text = page_of(browser, hub, f"/jobs/{request.request_id}").text
    named = set(re.findall(rf"s3://({bucket}/out/\S+\.(?:gpkg|sqlite|json))", text))
    results = re.search(rf"s3://({bucket}/\S+)<tileName>/<outputId>\.<format>", text)
    assert results is not None
    tiles = {f"{results[1]}f{number}/default.tif" for number in range(6)}
    assert named | tiles == set(s3_files.find(f"{bucket}/out"))


def test_jobs_are_listed_newest_first_and_paged(
    hub: LocalHub, browser: requests.Session, web: requests.Session, s3: SeaweedFS, bucket: str
) -> None:
    for number in range(27):
        payload = body(s3, bucket) | {"description": f"{bucket}-{number:02}"}
        assert web.post(hub.base_url + PROCESS, json=payload, timeout=10).status_code == 201
    shown = [re.findall(rf"{bucket}-(\d\d)", page_of(browser, hub, search=bucket, page=page).text) for page in (1, 2)]
    assert [int(number) for number in shown[0] + shown[1]] == list(range(26, -1, -1))
    assert len(shown[0]) == 25


def test_equal_requests_are_pointed_out(
    hub: LocalHub, browser: requests.Session, web: requests.Session, s3: SeaweedFS, bucket: str
) -> None:
    ids = [web.post(hub.base_url + PROCESS, json=body(s3, bucket), timeout=10).json()["id"] for _ in range(2)]
    for own, other in (ids, ids[::-1]):
        document = page_of(browser, hub, f"/jobs/{own}")
        assert ("a", {"href": f"/jobs/{other}"}) in document.elements
    assert re.search(r"[1-9]\d* of them a second time", page_of(browser, hub).text)


def test_an_unknown_job_is_answered_with_a_page(hub: LocalHub, browser: requests.Session) -> None:
    answer = browser.get(f"{hub.base_url}/jobs/{'<b>'}", timeout=10)
    assert answer.status_code == 404
    assert "There is no job <b>" in Document(answer.text).text


def test_faults_are_told_as_long_as_they_hold(hub: LocalHub, browser: requests.Session) -> None:
    faults = Faults(api=(ApiFault(operation="create", status=502, executed=True, skip=100),))
    answer = browser.put(f"{hub.base_url}/admin/faults", json=faults.model_dump(mode="json"), timeout=10)
    try:
        assert answer.status_code == 200
        told = (
            "Requests 'create' are answered with 502 although they are carried out: one of them, after 100 that pass."
        )
        assert told in page_of(browser, hub).text
    finally:
        browser.delete(f"{hub.base_url}/admin/faults", timeout=10)
    assert told not in page_of(browser, hub).text


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (
            Faults(api=(ApiFault(seconds=5, times=None),)),
            "Requests of any kind but 'token' wait 5 s for the answer: all",
        ),
        (Faults(api=(ApiFault(status=429, retry_after_ms=10, times=3),)), r"429 \(Retry-After 10 ms\) and not carried"),
        (Faults(tiles=(TileFault(kind="fatal", tile="33*", times=2),)), r"Tiles '33\*' fail, 2 tries each"),
        (Faults(tiles=(TileFault(kind="no_data"),)), "All tiles are processed as if there were no scene"),
        (Faults(tiles=(TileFault(kind="undelivered", seconds=9),)), "without their files, which follow 9 s later"),
        (Faults(tiles=(TileFault(kind="undelivered"),)), "which are never delivered"),
        (Faults(tiles=(TileFault(kind="truncated", output="B*"),)), r"half of the files of output 'B\*'"),
        (Faults(tiles=(TileFault(kind="missing"),)), "without their files"),
        (Faults(database=DatabaseFault(place="bucket")), "at the top of the bucket"),
        (Faults(database=DatabaseFault(place="request")), "in a folder of the request's id"),
        (Faults(database=DatabaseFault(torn_uploads=2)), "first 2 uploads"),
        (Faults(database=DatabaseFault(stale_seconds=7)), "7 s old"),
        (Faults(hidden_from_get_seconds=4), "cannot be got for 4 s"),
        (Faults(hidden_from_list_seconds=4), "absent from the list for 4 s"),
        (Faults(tile_seconds=2), "at least 2 s apart"),
        (Faults(out_of_pu_after_tiles=0), "OUT_OF_PU after 0 tiles"),
        (Faults(unhealthy_after_tiles=3), "UNHEALTHY after 3 tiles"),
    ],
)
def test_a_fault_is_told_in_a_sentence(faults: Faults, sentence: str) -> None:
    (told,) = faultwords.told(faults)
    assert re.search(sentence, told)
    assert told.endswith(".")


def test_without_faults_there_is_nothing_to_tell() -> None:
    assert faultwords.told(Faults()) == []


def test_the_last_errors_are_shown_without_secrets(
    hub: LocalHub, browser: requests.Session, web: requests.Session, s3: SeaweedFS
) -> None:
    payload = body(s3, "any-bucket")
    payload["input"]["resolution"] = 15
    web.post(hub.base_url + PROCESS, json=payload, timeout=10)
    answer = browser.get(hub.base_url, timeout=10).text
    text = Document(answer).text
    assert f"POST {PROCESS} 400" in text
    assert "Resolution 15 m is not offered by tiling grid 1" in text
    assert s3.secret_key not in answer


def test_the_challenge_of_the_page_itself_is_no_error(hub: LocalHub, browser: requests.Session) -> None:
    requests.get(f"{hub.base_url}/jobs/challenged", headers={"Accept": "text/html"}, timeout=10)
    assert "/jobs/challenged" not in page_of(browser, hub).text


def test_only_the_newest_errors_are_kept_and_long_ones_are_cut() -> None:
    incidents = Incidents()
    for number in range(KEPT + 5):
        incidents.add("a", f"{number} " + "x" * 1000)
    kept = incidents.newest()
    assert [incident.text.split()[0] for incident in kept] == [str(number) for number in range(KEPT + 4, 4, -1)]
    assert max(len(incident.text) for incident in kept) == 501


def test_an_error_knows_the_job_that_it_names() -> None:
    job_id = "7c3f5b80-52c3-4a5b-9d10-1a2b3c4d5e6f"
    now = datetime.now(UTC)
    assert Incident(now, f"POST {PROCESS}/{job_id}/start 400", "too late").job_id == job_id
    assert Incident(now, "localhub.processing", f"Job {job_id} failed").job_id == job_id
    assert Incident(now, "GET / 404", "nothing").job_id is None
