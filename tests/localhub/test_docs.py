"""localhub's own API description: valid, complete, true of what the routes answer, and readable without a network."""

import re
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from sentinelhub import BatchProcessClient

from localhub.api import answers
from localhub.api.app import create_app
from localhub.api.docs import described
from localhub.catalog import Search
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.batch_requests import body, process_request, wait_for

BATCH, CATALOG = "/api/v2/batch", "/api/v1/catalog/1.0.0"
PATH = "/jobs|/$|/docs|/openapi.json|/batch/v2|/catalog/v1|/process/v1|/oauth"
GREY = """//VERSION=3
function setup() { return {input: ["B04"], output: {bands: 1}}; }
function evaluatePixel(sample) { return [sample.B04]; }
"""
L1C = {"collections": ["sentinel-2-l1c"], "datetime": "../.."}


@pytest.fixture(scope="module")
def document(hub_settings: Settings) -> dict[str, Any]:
    return described(create_app(hub_settings))


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, one) for path, methods in document["paths"].items() for method, one in methods.items()]


def check(document: dict[str, Any], method: str, path: str, answer: requests.Response) -> None:
    """Hold an answer against what the document says of it."""
    told = document["paths"][path][method.lower()]["responses"][str(answer.status_code)]
    if "content" not in told:
        assert answer.content == b""
        return
    schema = told["content"][answer.headers["Content-Type"].partition(";")[0]]["schema"]
    if schema.get("format") == "binary":
        assert answer.content
    else:
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())


def test_the_document_is_valid_openapi(web: requests.Session, hub: LocalHub) -> None:
    validate(web.get(f"{hub.base_url}/openapi.json", timeout=10).json())


def test_every_operation_stands_in_it_once_with_a_summary(document: dict[str, Any]) -> None:
    summaries = [operation["summary"] for _, _, operation in operations(document)]
    assert len(set(summaries)) == len(summaries) == 29
    assert not [path for path in document["paths"] if re.match(PATH, path)]


def test_every_reference_leads_to_a_schema_and_no_schema_is_idle(document: dict[str, Any]) -> None:
    referred = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert referred == set(document["components"]["schemas"])


def test_credentials_are_told_where_they_are_wanted(hub: LocalHub, document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        url = hub.base_url + re.sub(r"{\w+}", "x", path)
        basic = requests.request(method, url, auth=("localhub", "no secret"), timeout=10)
        bare = requests.request(method, url, timeout=10)
        assert (bare.status_code == 401) == bool(operation.get("security")), path
        takes_basic = bare.headers.get("WWW-Authenticate", "").startswith("Basic")
        assert takes_basic == ({"client": []} in operation.get("security", [])), path
        if bare.status_code == 401:
            check(document, method, path, bare)
            check(document, method, path, basic)


def test_answers_of_the_batch_api_are_as_described(
    hub: LocalHub,
    web: requests.Session,
    client: BatchProcessClient,
    document: dict[str, Any],
    s3: SeaweedFS,
    bucket: str,
) -> None:
    def ask(method: str, path: str, *, status: int, job: str = "", **request: Any) -> requests.Response:
        answer = web.request(method, hub.base_url + path.replace("{task_id}", job), timeout=20, **request)
        assert answer.status_code == status
        check(document, method, path, answer)
        return answer

    one = f"{BATCH}/process/{{task_id}}"
    payload = body(s3, bucket)
    ids = [ask("POST", f"{BATCH}/process", status=201, json=payload).json()["id"] for _ in range(2)]
    ask("POST", f"{BATCH}/process", status=400, json=payload | {"input": {"type": "tiling-grid", "id": 77}})
    ask("POST", f"{BATCH}/process", status=415, data="x", headers={"Content-Type": "text/plain"})
    ask("GET", f"{BATCH}/process", status=200, params={"count": 1, "viewtoken": 1})
    ask("PUT", one, job=ids[0], status=200, json={"description": "another"})
    ask("GET", one, job="7c3f5b80-52c3-4a5b-9d10-1a2b3c4d5e6f", status=404)
    ask("POST", f"{one}/stop", job=ids[0], status=400)
    ask("POST", f"{one}/analyse", job=ids[0], status=204)
    ask("POST", f"{one}/start", job=ids[0], status=204)
    wait_for(client, client.get_request(ids[0]))
    assert ask("GET", one, job=ids[0], status=200).json()["costPU"] == 100
    ask("GET", f"{BATCH}/tilinggrids", status=200, params={"count": 2})
    for path, status in ((f"{BATCH}/tilinggrids/1", 200), (f"{BATCH}/tilinggrids/99", 400)):
        check(document, "GET", f"{BATCH}/tilinggrids/{{grid_id}}", web.get(hub.base_url + path, timeout=10))
        assert web.get(hub.base_url + path, timeout=10).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("GET", CATALOG, {}, 200),
        ("GET", f"{CATALOG}/conformance", {}, 200),
        ("GET", f"{CATALOG}/collections", {}, 200),
        ("GET", f"{CATALOG}/queryables", {}, 200),
        ("GET", f"{CATALOG}/search", {"params": {"collections": "sentinel-2-l1c", "datetime": "../.."}}, 200),
        ("GET", f"{CATALOG}/search", {"params": {"collections": "sentinel-2-l1c"}}, 400),
        ("POST", f"{CATALOG}/search", {"json": L1C | {"limit": 2}}, 200),
        ("POST", f"{CATALOG}/search", {"json": L1C | {"distinct": "date"}}, 200),
        ("POST", f"{CATALOG}/search", {"json": L1C | {"fields": {"include": [], "exclude": ["geometry"]}}}, 200),
        ("POST", f"{CATALOG}/search", {"json": {}}, 400),
        ("POST", "/api/v1/process", {"json": {}}, 400),
        ("GET", "/admin/creates", {}, 200),
        ("GET", "/admin/accounts", {}, 200),
        ("GET", "/admin/faults", {}, 200),
        ("GET", "/health", {}, 200),
        ("POST", "/auth/realms/main/protocol/openid-connect/token", {"data": {"grant_type": "password"}}, 400),
    ],
)
def test_an_answer_is_as_described(
    hub: LocalHub, web: requests.Session, document: dict[str, Any], method: str, path: str, request_: Any, status: int
) -> None:
    answer = web.request(method, hub.base_url + path, timeout=20, **request_)
    assert answer.status_code == status
    check(document, method, path, answer)


def test_a_token_and_a_picture_are_as_described(hub: LocalHub, web: requests.Session, document: dict[str, Any]) -> None:
    form = {"grant_type": "client_credentials", "client_id": "localhub", "client_secret": "localhub"}
    token = requests.post(hub.token_url, data=form, timeout=10)
    check(document, "POST", hub.token_url.removeprefix(hub.base_url), token)
    asked = process_request(GREY, bbox=[14.555, 45.868, 14.560, 45.872])
    picture = web.post(f"{hub.base_url}/api/v1/process", json=asked, timeout=30)
    assert picture.status_code == 200, picture.text
    check(document, "POST", "/api/v1/process", picture)


def test_the_body_of_a_search_has_the_members_that_a_search_reads(document: dict[str, Any]) -> None:
    read = {field.alias or name for name, field in Search.model_fields.items()}
    assert set(document["components"]["schemas"]["SearchBody"]["properties"]) == read
    query = {one["name"] for one in document["paths"][f"{CATALOG}/search"]["get"]["parameters"]}
    assert query == read
    assert answers.SearchBody.model_validate(L1C)


def test_bodies_are_described_down_to_their_fields(document: dict[str, Any]) -> None:
    content = document["paths"][f"{BATCH}/process"]["post"]["requestBody"]["content"]["application/json"]
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert {"processRequest", "input", "output"} <= set(schema["properties"])


def test_the_page_shows_all_of_it_and_loads_nothing_from_elsewhere(hub: LocalHub, document: dict[str, Any]) -> None:
    client = (hub.settings.client_id, hub.settings.client_secret.get_secret_value())
    answer = requests.get(f"{hub.base_url}/docs", auth=client, timeout=10)
    for _, path, operation in operations(document):
        assert f"</b> {path}</code>" in answer.text
        assert operation["summary"].replace("'", "&#39;") in answer.text
    anchors = set(re.findall(r'href="#([^"]+)"', answer.text))
    assert anchors <= set(re.findall(r'id="([^"]+)"', answer.text))
    assert len(anchors) > 20
    assert not re.findall(r"(?:src|href)=[\"\']https?:", answer.text)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_it_wants_credentials(hub: LocalHub, path: str) -> None:
    assert requests.get(hub.base_url + path, timeout=10).status_code == 401
