"""What no client should send is refused as the description has it, or does no harm."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tests.localhub.batch_requests import body
from tests.localhub.conformance.conftest import FUZZER, session_as
from tests.localhub.conformance.description import Description, Exchange
from tests.localhub.conformance.refusals import PREFIXES, UNKNOWN

PREFIX = PREFIXES[0]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def web(conforming_hub: LocalHub) -> requests.Session:
    """A session of a client whose requests are nobody else's business."""
    return session_as(conforming_hub, FUZZER)


def exchange_of(answer: requests.Response) -> Exchange:
    """The exchange that ended with an answer."""
    sent = answer.request
    content = sent.body.encode() if isinstance(sent.body, str) else sent.body or b""
    target = sent.path_url
    return Exchange(
        sent.method or "", target, sent.headers, content, answer.status_code, answer.headers, answer.content
    )


def changed(payload: Any, path: str, value: Any) -> str:
    """A payload as JSON, with another value at a dotted path."""
    *parents, last = path.split(".")
    place = payload
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return json.dumps(payload)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("description", "half a surrogate pair: \ud800"),
        ("description", None),
        ("unknown", "\udfff"),
        ("instanceType", "huge"),
        ("processRequest.evalscript", ["//VERSION=3"]),
        ("processRequest.input.bounds.bbox", None),
        ("processRequest.input.bounds.bbox", [14.5, 45.8, 14.6]),
        ("processRequest.input.bounds.geometry", {"type": {}, "coordinates": []}),
        (
            "processRequest.input.bounds.geometry",
            {"type": "Polygon", "coordinates": [[[0, 0, 1], [1, 0, 1], [0, 1, 1]]]},
        ),
        ("processRequest.input.bounds.geometry", {"type": "Polygon", "coordinates": {"0": []}}),
        ("processRequest.output", {"responses": [{"identifier": "default"}]}),
        ("processRequest.output.responses", None),
        ("input.id", 10**30),
        ("input.id", True),
        ("input.resolution", "10"),
        ("input.bufferX", 2**40),
        ("output.cogParameters", {"overviewLevels": None}),
        ("output.delivery.s3.url", "s3://\x00/\x00"),
        ("output.delivery.s3.url", "s3://a" + "b" * 100_000),
    ],
)
def test_a_create_that_breaks_a_rule_is_a_400(
    conforming_hub: LocalHub, description: Description, web: requests.Session, s3: SeaweedFS, path: str, value: Any
) -> None:
    sent = changed(body(s3, "a-bucket"), path, value)
    answer = web.post(f"{conforming_hub.base_url}{PREFIX}/process", data=sent, headers=JSON, timeout=10)
    assert answer.status_code == 400, answer.text
    assert description.response_faults(exchange_of(answer)) == []


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"description": NaN}',
        b'{"unknown": 1e999}',
        b'{"unknown": ' + b"9" * 5000 + b"}",
        b'{"unknown": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"description": "a", "description": 1}',
    ],
    ids=lambda sent: sent[:24].decode(errors="replace"),
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/process"), ("PUT", f"/process/{UNKNOWN}")])
def test_a_body_that_is_no_json_object_is_a_400(
    conforming_hub: LocalHub, description: Description, web: requests.Session, method: str, path: str, sent: bytes
) -> None:
    answer = web.request(method, f"{conforming_hub.base_url}{PREFIX}{path}", data=sent, headers=JSON, timeout=10)
    assert answer.status_code in ((400,) if method == "POST" else (400, 404)), answer.text
    assert description.response_faults(exchange_of(answer)) == []


def test_an_evalscript_part_that_is_no_text_is_a_400(conforming_hub: LocalHub, web: requests.Session) -> None:
    parts = {"request": (None, '{"processRequest": {}}'), "evalscript": ("script.js", b"\xff\xfe")}
    answer = web.post(f"{conforming_hub.base_url}{PREFIX}/process", files=parts, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "COMMON_BAD_PAYLOAD")


@pytest.mark.parametrize(
    "query",
    [
        "count=-1&viewtoken=-1",
        "count=99999999999999999999&viewtoken=99999999999999999999",
        "count=%D9%A3&viewtoken=%C2%B2",
        "count=&viewtoken=&sort=&search=",
        "count=1&count=2",
        "search=%00",
        "search=%FF%ED%A0%80",
        "search=" + "a" * 20_000,
        "sort=created%3Bdrop%20table",
    ],
    ids=lambda query: query[:24],
)
def test_an_odd_query_of_a_list_is_answered_with_a_list(
    conforming_hub: LocalHub, description: Description, web: requests.Session, query: str
) -> None:
    answer = web.get(f"{conforming_hub.base_url}{PREFIX}/process?{query}", timeout=10)
    assert answer.status_code == 200
    assert description.response_faults(exchange_of(answer)) == []


@pytest.mark.parametrize("task_id", ["0", "%00", "%2E%2E", "%ED%A0%80", "a" * 4000, "%27%20OR%201=1", "\u202e"])
def test_an_odd_id_is_not_found(conforming_hub: LocalHub, web: requests.Session, task_id: str) -> None:
    for suffix in ("", "/start"):
        method = "POST" if suffix else "GET"
        answer = web.request(method, f"{conforming_hub.base_url}{PREFIX}/process/{task_id}{suffix}", timeout=10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "COMMON_NOT_FOUND")


@pytest.mark.parametrize("grid_id", ["-1", "1.0", "01", "%D9%A1", "9" * 5000, "%00"])
def test_an_odd_grid_is_a_400(
    conforming_hub: LocalHub, description: Description, web: requests.Session, grid_id: str
) -> None:
    answer = web.get(f"{conforming_hub.base_url}{PREFIX}/tilinggrids/{grid_id}", timeout=10)
    assert answer.status_code == 400
    assert description.response_faults(exchange_of(answer)) == []


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer a.b.c",
        b"Bearer \xff",
        b"Bearer \x00",
        b"Basic bG9jYWxodWI6bG9jYWxodWI=",
        b"x" * 9000,
    ],
)
def test_an_odd_authorization_is_a_401(conforming_hub: LocalHub, authorization: bytes) -> None:
    status = raw_status(conforming_hub, b"GET " + PREFIX.encode() + b"/process", b"Authorization: " + authorization)
    assert status == (400 if b"\x00" in authorization else 401)  # uvicorn refuses NUL in a header by itself


def raw_status(hub: LocalHub, line: bytes, header: bytes) -> int:
    """The status of the answer to a request that no client library would write."""
    address = urlsplit(hub.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(line + b" HTTP/1.1\r\nHost: localhub\r\nConnection: close\r\n" + header + b"\r\n\r\n")
        return int(connection.makefile("rb").readline().split()[1])
