"""What localhub refuses, in the shapes that clients read."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests
import s3fs
from sentinelhub import BatchProcessClient
from sentinelhub.exceptions import DownloadFailedException

from localhub.auth import Account, issue_token
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.store import Store
from tests.localhub.batch_requests import RED, access, body, process_request, wait_for

PROCESS = "/api/v2/batch/process"
UNKNOWN = f"{PROCESS}/7c3f5b80-52c3-4a5b-9d10-1a2b3c4d5e6f"


def error_of(response: requests.Response, status: int, code: str) -> dict[str, Any]:
    """The documented error object of a response, after a look at its fixed parts."""
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["status"], error["code"]) == (status, status, code)
    assert error["reason"]
    assert error["message"]
    return error


def test_the_health_route_needs_no_token(hub: LocalHub) -> None:
    assert requests.get(f"{hub.base_url}/health", timeout=10).json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/auth/realms/any/protocol/openid-connect/token", "/oauth/token"])
@pytest.mark.parametrize("in_header", [True, False])
def test_a_client_gets_a_token_by_body_or_basic_header(hub: LocalHub, path: str, in_header: bool) -> None:
    client = {"client_id": "localhub", "client_secret": "localhub"}
    form = {"grant_type": "client_credentials"} | ({} if in_header else client)
    header = ("localhub", "localhub") if in_header else None
    answer = requests.post(hub.base_url + path, data=form, auth=header, timeout=10)
    assert answer.status_code == 200
    assert answer.json().items() >= {"expires_in": 3600, "token_type": "Bearer", "not-before-policy": 0}.items()
    assert answer.json()["access_token"].count(".") == 2


@pytest.mark.parametrize("secret", ["wrong", "", "ä"])
def test_a_wrong_client_is_answered_in_oauths_words(hub: LocalHub, secret: str) -> None:
    form = {"grant_type": "client_credentials", "client_id": "localhub", "client_secret": secret}
    answer = requests.post(hub.token_url, data=form, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


def test_another_grant_is_not_offered(hub: LocalHub) -> None:
    answer = requests.post(hub.token_url, data={"grant_type": "password"}, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")


@pytest.mark.parametrize("prefix", ["/api/v2/batch", "/batch/v2"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/process"),
        ("GET", "/process"),
        ("GET", "/process/x"),
        ("PUT", "/process/x"),
        ("POST", "/process/x/start"),
        ("GET", "/tilinggrids"),
        ("GET", "/tilinggrids/1"),
    ],
)
def test_every_route_of_the_api_wants_a_token(hub: LocalHub, prefix: str, method: str, path: str) -> None:
    answer = requests.request(method, hub.base_url + prefix + path, timeout=10)
    error_of(answer, 401, "COMMON_UNAUTHORIZED")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", UNKNOWN, 404, "COMMON_NOT_FOUND"),
        ("POST", f"{UNKNOWN}/start", 404, "COMMON_NOT_FOUND"),
        ("GET", "/api/v2/batch/tiles", 404, "COMMON_NOT_FOUND"),
        ("DELETE", UNKNOWN, 405, "COMMON_METHOD_NOT_ALLOWED"),
        ("GET", "/api/v2/batch/tilinggrids/5", 400, "COMMON_BAD_PAYLOAD"),
        ("GET", "/api/v2/batch/tilinggrids/x", 400, "COMMON_BAD_PAYLOAD"),
    ],
)
def test_what_does_not_exist_is_answered_in_the_documented_shape(
    hub: LocalHub, web: requests.Session, method: str, path: str, status: int, code: str
) -> None:
    error_of(web.request(method, hub.base_url + path, timeout=10), status, code)


@pytest.mark.parametrize(
    ("headers", "data", "status", "code"),
    [
        ({"Content-Type": "application/json"}, b"{", 400, "COMMON_BAD_PAYLOAD"),
        ({"Content-Type": "application/json"}, b"[]", 400, "COMMON_BAD_PAYLOAD"),
        ({"Content-Type": "application/json"}, b'{"a": NaN}', 400, "COMMON_BAD_PAYLOAD"),
        ({"Content-Type": "text/plain"}, b"{}", 415, "COMMON_UNSUPPORTED_MEDIA_TYPE"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(
    hub: LocalHub, web: requests.Session, headers: dict[str, str], data: bytes, status: int, code: str
) -> None:
    error_of(web.post(hub.base_url + PROCESS, data=data, headers=headers, timeout=10), status, code)


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a payload: the value at a dotted path; None removes it."""

    def change(payload: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            payload = payload[int(name) if name.isdecimal() else name]
        if value is None:
            del payload[last]
        else:
            payload[last] = value

    return change


BOW_TIE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}
DATA = "processRequest.input.data.0"
BYOC = {"type": "byoc-017aa0ae-33a6-45d3-8548-0f7d1041b40c", "id": "own"}
HLS = {"type": "hls", "dataFilter": {"constellation": "SENTINEL"}}
SAR = {"type": "sentinel-1-grd", "processing": {"orthorectify": True}}
LEAST_CC = {"dataFilter": {"mosaickingOrder": "leastCC"}}


@pytest.mark.parametrize(
    ("change", "field", "note"),
    [
        (put("processRequest", None), "processRequest", "Field required"),
        (put("input.id", 4), "input", r"Tiling grid 4 is not known; choose one of 0 \(20km grid\), 1"),
        (
            put("input.resolution", 15),
            "input",
            r"Resolution 15 m is not offered by tiling grid 1 \(10km grid\); choose 10 or 20 m",
        ),
        (put("input.bufferX", -1), "input.bufferX", "greater than or equal to 0"),
        (put("input.id", "1"), "input.id", "valid integer"),
        (put("input.type", "tiles"), "input", "does not match any of the expected tags"),
        (put("processRequest.evalscript", " "), "processRequest.evalscript", "Missing or empty evalscript"),
        (put("processRequest.input.bounds", {}), "request", "needs a bbox or a geometry"),
        (put("processRequest.input.bounds.bbox", [1, 1, 1, 2]), "processRequest.input.bounds", "empty"),
        (put("processRequest.input.bounds.geometry", BOW_TIE), "processRequest.input.bounds", "crosses itself"),
        (
            put("processRequest.input.bounds.properties", {"crs": "EPSG:9999"}),
            "processRequest.input.bounds",
            "CRS 'EPSG:9999' is not supported",
        ),
        (put("processRequest.input.data", []), "processRequest.input.data", "at least 1"),
        (put("processRequest.input.data", [HLS]), DATA, "dataFilter of 'hls' has constellation, which is not offered"),
        (put("processRequest.input.data", [SAR]), DATA, "processing of 'sentinel-1-grd' has orthorectify"),
        (put(f"{DATA}.type", "AAA"), f"{DATA}.type", "'AAA' is no collection; give a name such as sentinel-2-l1c"),
        (put(f"{DATA}.type", "landsat-8 l1c"), f"{DATA}.type", "'landsat-8 l1c' is no collection; give a name such as"),
        (put("processRequest.input.data", [BYOC | LEAST_CC]), DATA, "choose mostRecent or leastRecent"),
        (
            put("processRequest.input.data", [BYOC, BYOC]),
            "processRequest.input.data",
            "the id 'own' stands for several",
        ),
        (put("processRequest.input.data", [{"type": "S2L1C"}, BYOC | {"id": "0"}]), "processRequest.input.data", "'0'"),
        (put(f"{DATA}.dataFilter.maxCloudCoverage", 101), f"{DATA}.dataFilter.maxCloudCoverage", "equal to 100"),
        (put(f"{DATA}.dataFilter.mosaickingOrder", "best"), f"{DATA}.dataFilter.mosaickingOrder", "mostRecent"),
        (put(f"{DATA}.dataFilter.timeRange.to", "2015-09-30"), f"{DATA}.dataFilter.timeRange.to", "date-time"),
        (
            put(f"{DATA}.dataFilter.timeRange.to", "2015-06-30T00:00:00Z"),
            f"{DATA}.dataFilter.timeRange",
            "before it starts",
        ),
        (
            put("processRequest.output.responses", [{"identifier": "a", "format": {"type": "image/png"}}]),
            "processRequest.output.responses.0.format.type",
            "image/tiff",
        ),
        (put("output.type", "zarr"), "output.group", "Field required"),
        (put("output.delivery", {"gs": {}}), "output.delivery.s3", "Field required"),
        (put("output.delivery.s3.url", "s3://bucket/<tile>.tif"), "request", "unknown placeholder <tile>"),
        (
            put("output.delivery.s3.secretAccessKey", None),
            "output.delivery.s3",
            "either accessKey with secretAccessKey",
        ),
        (put("output.delivery.s3.iamRoleARN", "arn"), "output.delivery.s3", "or iamRoleARN"),
        (put("output.createCollection", True), "output", "no collections of its own"),
        (put("output.cogParameters", {"blockxsize": 100}), "output.cogParameters.blockxsize", "multiple of 16"),
    ],
)
def test_a_payload_that_breaks_a_rule_is_refused_with_a_note_at_the_field(
    hub: LocalHub,
    web: requests.Session,
    s3: SeaweedFS,
    change: Callable[[dict[str, Any]], None],
    field: str,
    note: str,
) -> None:
    payload = body(s3, "any-bucket")
    change(payload)
    answer = web.post(hub.base_url + PROCESS, json=payload, timeout=10)
    error = error_of(answer, 400, "COMMON_BAD_PAYLOAD")
    assert field in error["errors"]
    with pytest.raises(AssertionError, match=note):  # the client shows the message, so it must hold the note too
        raise AssertionError(error["message"])
    assert s3.secret_key not in answer.text


def test_a_missing_bucket_is_named_at_creation(client: BatchProcessClient, s3: SeaweedFS) -> None:
    payload = body(s3, "no-such-bucket")
    with pytest.raises(DownloadFailedException, match="Cannot write to bucket 'no-such-bucket': NoSuchBucket"):
        client.create(payload["processRequest"], payload["input"], payload["output"])


def test_wrong_keys_are_said_at_creation_and_not_repeated(
    hub: LocalHub, web: requests.Session, s3: SeaweedFS, bucket: str
) -> None:
    payload = body(s3, bucket)
    payload["output"]["delivery"]["s3"]["secretAccessKey"] = "planted-wrong-secret"
    answer = web.post(hub.base_url + PROCESS, json=payload, timeout=20)
    message = error_of(answer, 400, "COMMON_BAD_PAYLOAD")["message"]
    assert f"Cannot write to bucket '{bucket}': SignatureDoesNotMatch" in message
    assert "planted-wrong-secret" not in answer.text


def test_a_multipart_body_brings_its_evalscript_as_a_part(
    hub: LocalHub, web: requests.Session, s3: SeaweedFS, bucket: str
) -> None:
    payload = body(s3, bucket)
    payload["processRequest"]["evalscript"] = "replaced"
    parts = {
        "request": (None, json.dumps(payload), "application/json"),
        "evalscript": (None, RED, "text/javascript"),
    }
    answer = web.post(hub.base_url + PROCESS, files=parts, timeout=10)
    assert answer.status_code == 201
    assert answer.json()["request"]["processRequest"]["evalscript"].splitlines() == RED.splitlines()


def test_two_equal_creates_are_two_requests(hub: LocalHub, web: requests.Session, s3: SeaweedFS, bucket: str) -> None:
    answers = [web.post(hub.base_url + PROCESS, json=body(s3, bucket), timeout=10).json() for _ in range(2)]
    assert answers[0]["id"] != answers[1]["id"]
    assert answers[0]["request"] == answers[1]["request"]


def test_a_list_is_paged_sorted_and_searched(hub: LocalHub, web: requests.Session, s3: SeaweedFS, bucket: str) -> None:
    mark = f"page-{bucket}"
    for number in range(5):
        web.post(hub.base_url + PROCESS, json=body(s3, bucket) | {"description": f"{mark} {number}"}, timeout=10)

    def page(**query: Any) -> Any:
        return web.get(hub.base_url + PROCESS, params={"search": mark, **query}, timeout=10).json()

    def numbers(answer: Any) -> list[int]:
        return [int(task["request"]["description"].split()[-1]) for task in answer["data"]]

    first = page(count=2, sort="created")
    assert numbers(first) == [0, 1]
    assert first["links"].keys() == {"@id", "currentToken", "nextToken", "next"}
    middle = web.get(first["links"]["next"], timeout=10).json()
    assert numbers(middle) == [2, 3]
    assert (middle["links"]["previousToken"], middle["links"]["currentToken"]) == ("0", "2")
    last = page(count=2, viewtoken=middle["links"]["nextToken"])
    assert numbers(last) == [4]
    assert "nextToken" not in last["links"]
    assert numbers(page(sort="created:desc")) == [4, 3, 2, 1, 0]
    assert len(page(count=1000, sort="none", unknown=1)["data"]) == 5


def test_an_action_out_of_turn_is_refused(
    hub: LocalHub, web: requests.Session, client: BatchProcessClient, s3: SeaweedFS, bucket: str
) -> None:
    payload = body(s3, bucket)
    request = client.create(payload["processRequest"], payload["input"], payload["output"])
    answer = web.post(f"{hub.base_url}{PROCESS}/{request.request_id}/stop", timeout=10)
    assert "STOP is not possible" in error_of(answer, 400, "COMMON_BAD_PAYLOAD")["message"]
    accepted = web.post(
        f"{hub.base_url}{PROCESS}/{request.request_id}/start", headers={"Content-Type": "application/json"}, timeout=10
    )
    assert (accepted.status_code, accepted.content) == (204, b"")
    answer = web.put(f"{hub.base_url}{PROCESS}/{request.request_id}", json={"description": "late"}, timeout=10)
    assert wait_for(client, request).status.value == "DONE"
    error_of(answer, 409, "COMMON_BAD_PAYLOAD")


def test_secrets_appear_nowhere_but_in_the_credential_store(
    hub: LocalHub,
    web: requests.Session,
    client: BatchProcessClient,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    whole_scene: str,
) -> None:
    request = client.create(
        process_request(RED),
        client.geopackage_input(access(s3, whole_scene)),
        client.raster_output(access(s3, f"s3://{bucket}/o")),
    )
    stored = hub.settings.data_dir / "credentials" / f"{request.request_id}.json"
    assert s3.secret_key in stored.read_text()
    assert (stored.stat().st_mode & 0o777, stored.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    client.start_job(request)
    assert wait_for(client, request).status.value == "DONE"
    assert not stored.exists()

    answers = [web.get(f"{hub.base_url}{PROCESS}{path}", timeout=10).content for path in ("", f"/{request.request_id}")]
    objects = [s3_files.cat_file(path) for path in s3_files.find(bucket)]
    files = [
        path.read_bytes()
        for path in hub.settings.data_dir.rglob("*")
        if path.is_file() and path.parent != stored.parent
    ]
    assert len(objects) >= 4
    for content in answers + objects + files:
        assert s3.secret_key.encode() not in content
        assert s3.access_key.encode() not in content


@pytest.fixture
def signing_key(hub: LocalHub) -> bytes:
    """The key with which the running localhub signs its tokens."""
    store = Store(hub.settings.data_dir)
    try:
        return store.signing_key()
    finally:
        store.close()


def ask(hub: LocalHub, path: str, account: Account, key: bytes, seconds: int = 3600) -> requests.Response:
    """GET a path with a token made here."""
    token = issue_token(account, key, seconds=seconds, issuer=hub.base_url)
    return requests.get(hub.base_url + path, headers={"Authorization": f"Bearer {token}"}, timeout=10)


def test_an_expired_token_is_refused(hub: LocalHub, signing_key: bytes) -> None:
    anybody = Account("localhub", "6f1c7d5e-0000-4000-8000-000000000000")
    assert ask(hub, PROCESS, anybody, signing_key).status_code == 200
    expired = ask(hub, PROCESS, anybody, signing_key, seconds=-1)
    assert "has expired" in error_of(expired, 401, "COMMON_UNAUTHORIZED")["message"]


def test_another_accounts_request_is_neither_shown_nor_listed(
    hub: LocalHub, web: requests.Session, signing_key: bytes, s3: SeaweedFS, bucket: str
) -> None:
    task = web.post(hub.base_url + PROCESS, json=body(s3, bucket), timeout=10).json()
    stranger = Account("another", "6f1c7d5e-0000-4000-8000-000000000000")
    shown = ask(hub, f"{PROCESS}/{task['id']}", stranger, signing_key)
    error_of(shown, 403, "COMMON_INSUFFICIENT_PERMISSIONS")
    assert ask(hub, PROCESS, stranger, signing_key).json()["data"] == []
