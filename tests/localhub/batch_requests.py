"""Requests as the tests send them, and what they wait for."""

import os
import time
from collections.abc import Collection, Iterable
from typing import Any

import requests
from sentinelhub import BatchProcessClient, BatchProcessRequest, BatchRequestStatus, SHConfig

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub

ENDED = ("DONE", "FAILED", "STOPPED")

RED = """//VERSION=3
function setup() {
  return {input: [{bands: ["B04"], units: "DN"}], output: {bands: 1, sampleType: "UINT16"}};
}
function evaluatePixel(sample) { return [sample.B04]; }
"""
"""The red band of the newest scene, as stored."""

SLOW = RED + "const end = Date.now() + 400; while (Date.now() < end);\n"
"""The same, after thinking for 0.4 s."""


def access(s3: SeaweedFS, url: str) -> dict[str, Any]:
    """S3 information with keys."""
    return BatchProcessClient.s3_specification(url=url, access_key=s3.access_key, secret_access_key=s3.secret_key)


def process_request(
    evalscript: str,
    responses: Iterable[tuple[str, str]] = (("default", "image/tiff"),),
    *,
    bbox: Collection[float] | None = None,
    **data_filter: Any,
) -> dict[str, Any]:
    """The `processRequest` over the real scenes' summer; `data_filter` overrides the filter's fields."""
    period = {"from": "2015-07-01T00:00:00Z", "to": "2015-09-30T23:59:59Z"}
    data = {"type": "sentinel-2-l1c", "dataFilter": {"timeRange": period, **data_filter}}
    return {
        "input": {"bounds": {} if bbox is None else {"bbox": bbox}, "data": [data]},
        "output": {"responses": [{"identifier": name, "format": {"type": kind}} for name, kind in responses]},
        "evalscript": evalscript,
    }


def body(s3: SeaweedFS, bucket: str) -> dict[str, Any]:
    """A whole valid body over grid 1."""
    return {
        "processRequest": process_request(RED, bbox=[14.555, 45.868, 14.560, 45.872]),
        "input": {"type": "tiling-grid", "id": 1, "resolution": 10},
        "output": {"type": "raster", "delivery": {"s3": access(s3, f"s3://{bucket}/out")["s3"]}},
        "description": "a test",
    }


def wait_for(
    client: BatchProcessClient, request: BatchProcessRequest, statuses: Collection[str] = ENDED, seconds: float = 40
) -> BatchProcessRequest:
    """Ask until the request has one of the statuses; fail the test when it takes too long."""
    end = time.monotonic() + seconds
    while (found := client.get_request(request)).status not in {BatchRequestStatus(status) for status in statuses}:
        assert time.monotonic() < end, f"still {found.status} after {seconds} s"
        time.sleep(0.05)
    return found


def client_of(hub: LocalHub) -> BatchProcessClient:
    """The vendor's own client, pointed at `hub`; each has a token of its own."""
    os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"
    config = SHConfig(use_defaults=True)
    config.sh_base_url = hub.base_url
    config.sh_token_url = hub.token_url
    config.sh_client_id = hub.settings.client_id
    config.sh_client_secret = hub.settings.client_secret.get_secret_value()
    return BatchProcessClient(config)


def session_of(hub: LocalHub) -> requests.Session:
    """A bare HTTP session with a token of `hub`."""
    secret = hub.settings.client_secret.get_secret_value()
    form = {"grant_type": "client_credentials", "client_id": hub.settings.client_id, "client_secret": secret}
    token = requests.post(hub.token_url, data=form, timeout=10).json()["access_token"]
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    return session
