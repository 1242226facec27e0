"""Each provider has what its deployment has: bands of s2cloudless and roles, or neither; and its own blocks in COGs."""

from collections.abc import Iterator

import pytest
import rasterio
import requests
import s3fs

from localhub.payload import CogParameters
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.batch_requests import RED, access, body, client_of, process_request, session_of, wait_for

CLOUDS = RED.replace('"B04"', '"B04", "CLM", "CLP"')
ROLE = "arn:aws:iam::123456789012:role/batch"


@pytest.fixture(scope="module")
def cdse(hub_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub that is the Copernicus Data Space Ecosystem, with keys that could stand in for a role."""
    settings = hub_settings.model_copy(update={"data_dir": tmp_path_factory.mktemp("cdse"), "provider": "cdse"})
    with LocalHub(settings) as running:
        yield running


def rendered(hub: LocalHub, script: str) -> requests.Response:
    request = process_request(script, bbox=[14.555, 45.868, 14.560, 45.872])
    return session_of(hub).post(f"{hub.base_url}/api/v1/process", json=request)


def analysed(hub: LocalHub, s3: SeaweedFS, bucket: str, script: str) -> tuple[str, str | None]:
    """Status and error of a request that was analysed."""
    client, payload = client_of(hub), body(s3, bucket)
    request = client.create(payload["processRequest"] | {"evalscript": script}, payload["input"], payload["output"])
    client.start_analysis(request)
    ended = wait_for(client, request, ("ANALYSIS_DONE", "FAILED"))
    return ended.status.value, ended.error


def test_aws_has_the_bands_of_s2cloudless_and_cdse_has_not(
    hub: LocalHub, cdse: LocalHub, s3: SeaweedFS, bucket: str
) -> None:
    assert rendered(hub, CLOUDS).status_code == 200
    assert analysed(hub, s3, bucket, CLOUDS) == ("ANALYSIS_DONE", None)
    refusal = "Collection 'S2L1C' has no band 'CLM'."
    answer = rendered(cdse, CLOUDS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "RENDERER_EXCEPTION")
    assert answer.json()["error"]["message"] == refusal
    assert analysed(cdse, s3, bucket, CLOUDS) == ("FAILED", refusal)
    assert rendered(cdse, RED).status_code == 200


@pytest.mark.parametrize("place", ["output", "input"])
def test_cdse_takes_no_role(hub: LocalHub, cdse: LocalHub, s3: SeaweedFS, bucket: str, place: str) -> None:
    payload = body(s3, bucket)
    if place == "output":
        url = payload["output"]["delivery"]["s3"]["url"]
        payload["output"]["delivery"]["s3"] = {"url": url, "iamRoleARN": ROLE}
    else:
        url = f"s3://{bucket}/grid.gpkg"
        payload["input"] = {"type": "geopackage", "features": {"s3": {"url": url, "iamRoleARN": ROLE}}}
    created = session_of(hub).post(f"{hub.base_url}/api/v2/batch/process", json=payload)
    assert created.status_code == 201
    refused = session_of(cdse).post(f"{cdse.base_url}/api/v2/batch/process", json=payload)
    assert refused.status_code == 400
    assert f"iamRoleARN for '{url}' is not offered" in refused.json()["error"]["message"]


@pytest.mark.parametrize(("provider", "side"), [("aws", 256), ("cdse", 1008)])
def test_an_access_key_gets_cogs_in_the_providers_blocks(
    hub: LocalHub,
    cdse: LocalHub,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    provider: str,
    side: int,
) -> None:
    """1024 pixels are too many for a tile of 1000: the next multiple of 16 it is."""
    client, payload = client_of(hub if provider == "aws" else cdse), body(s3, bucket)
    delivery = access(s3, f"s3://{bucket}/<tileName>.<format>")
    output = client.raster_output(delivery, cog_output=True)
    request = client.create(payload["processRequest"], payload["input"], output)
    client.start_job(request)
    assert wait_for(client, request, seconds=90).status.value == "DONE"
    (path,) = s3_files.glob(f"{bucket}/*.tif")
    with rasterio.MemoryFile(s3_files.cat_file(path)) as memory, memory.open() as dataset:
        assert dataset.shape == (1000, 1000)
        assert dataset.block_shapes == [(side, side)]


def test_a_block_size_that_is_asked_for_stands() -> None:
    asked = CogParameters.model_validate({"blockxsize": 512}).with_blocks(256)
    assert (asked.blockxsize, asked.blockysize) == (512, 256)
    assert CogParameters.model_validate({"blockxsize": 1024}).with_blocks(256).blockxsize == 1024
