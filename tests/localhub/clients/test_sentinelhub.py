"""sentinelhub-py, unmodified: its monitors, each method of its batch client, and errors as it surfaces them.

What `tests/localhub/test_service.py` shows by the way (results in the bucket, STOP and START, the analysis's refusals)
is not repeated here.
"""

from collections.abc import Callable
from typing import Any

import pytest
import rasterio
import s3fs
from oauthlib.oauth2 import InvalidClientError
from sentinelhub import (
    CRS,
    BatchProcessClient,
    BatchProcessRequest,
    BatchRequestStatus,
    BatchUserAction,
    BBox,
    DataCollection,
    MimeType,
    SentinelHubRequest,
    SentinelHubSession,
    monitor_batch_process_analysis,
    monitor_batch_process_job,
)
from sentinelhub.exceptions import DownloadFailedException

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tests.localhub.batch_requests import RED, SLOW, access, body, client_of, process_request, wait_for

UNKNOWN = "7c3f5b80-52c3-4a5b-9d10-1a2b3c4d5e6f"


@pytest.fixture
def order(
    client: BatchProcessClient, s3: SeaweedFS, bucket: str, six_features: str
) -> Callable[..., BatchProcessRequest]:
    """Creates a request over six small features, with an evalscript and a description; nothing is started."""

    def create(evalscript: str = RED, description: str | None = None) -> BatchProcessRequest:
        return client.create(
            process_request(evalscript),
            client.geopackage_input(access(s3, six_features)),
            client.raster_output(access(s3, f"s3://{bucket}/<requestId>/<tileName>.tif")),
            description=description,
        )

    return create


def test_the_job_monitor_follows_a_job_from_start_to_end(
    client: BatchProcessClient, order: Callable[..., BatchProcessRequest]
) -> None:
    """`monitor_batch_process_job` is called right after START, as its documentation says, with the shortest sleeps that
    it takes: it sees ANALYSING, sleeps 5 s, and finds the job at its end.
    """
    request = order()
    client.start_job(request)
    done = monitor_batch_process_job(request, client, sleep_time=60, analysis_sleep_time=5)
    assert (done.status, done.completion_percentage) == (BatchRequestStatus.DONE, 100), done.error


def test_the_monitors_return_after_the_analysis_and_raise_for_a_stopped_job(
    client: BatchProcessClient, order: Callable[..., BatchProcessRequest]
) -> None:
    """`monitor_batch_process_analysis` ends with ANALYSIS_DONE, from which STOP leads to STOPPED, which both refuse."""
    request = order()
    client.start_analysis(request)
    wait_for(client, request, ["ANALYSIS_DONE"])
    assert monitor_batch_process_analysis(request, client, sleep_time=5).user_action is BatchUserAction.ANALYSE
    client.stop_job(request)
    stopped = wait_for(client, request)
    assert stopped.stopped_status_reason.value == "USER_ACTION"
    for monitor in (monitor_batch_process_analysis, monitor_batch_process_job):
        with pytest.raises(RuntimeError, match=f"{request.request_id} with status STOPPED"):
            monitor(request, client)


def test_the_monitors_raise_with_the_reason_of_a_failed_analysis(
    client: BatchProcessClient, order: Callable[..., BatchProcessRequest]
) -> None:
    """The `error` of a FAILED request reaches the user of a monitor."""
    request = order(RED.replace("B04", "B99"))
    client.start_job(request)
    wait_for(client, request)
    for monitor in (monitor_batch_process_analysis, monitor_batch_process_job):
        with pytest.raises(RuntimeError, match=r"FAILED and error message: .* has no band 'B99'"):
            monitor(request, client)


def test_a_request_may_be_given_as_object_id_or_dictionary(
    client: BatchProcessClient, order: Callable[..., BatchProcessRequest]
) -> None:
    """`get_request`, `update_request`, `start_analysis`, `start_job` and `stop_job` reach the same request whichever
    way it is named; what they return has the documented types; and the object survives a round trip through its JSON.
    """
    created = order(SLOW, "first")
    assert (created.status, created.user_action) == (BatchRequestStatus.CREATED, BatchUserAction.NONE)
    assert (created.cost_PU, created.error, created.completion_percentage) == (None, None, 0)
    assert BatchProcessRequest.from_dict(created.to_dict()) == created
    named = {"id": created.request_id}
    for way in (created, created.request_id, named):
        assert client.get_request(way).to_dict() == created.to_dict()

    assert client.update_request(created.request_id, "second")["description"] == "second"
    updated = client.get_request(named)
    assert updated.request == created.request | {"description": "second"}
    assert updated.created == created.created <= updated.last_updated

    assert client.start_analysis(created.request_id) == ""
    assert wait_for(client, created, ["ANALYSIS_DONE"]).user_action_updated >= updated.last_updated
    assert client.start_job(named) == ""
    wait_for(client, created, ["PROCESSING"])
    with pytest.raises(DownloadFailedException, match="409 Client Error"):
        client.update_request(created, "too late")
    assert client.stop_job(created.request_id) == ""
    assert wait_for(client, created).status is BatchRequestStatus.STOPPED


def test_the_client_walks_through_the_pages_of_a_list(
    client: BatchProcessClient, order: Callable[..., BatchProcessRequest], bucket: str
) -> None:
    """`iter_requests` and `iter_tiling_grids` give every entry once and in order, however short a page is, and
    `get_tiling_grid` gives each grid of the list.
    """
    ids = [order(description=f"{bucket} {number}").request_id for number in range(5)]
    order(description="another")

    def listed(**query: Any) -> list[str]:
        return [request.request_id for request in client.iter_requests(search=bucket, **query)]

    assert listed(count=2, sort="created") == ids
    assert listed(count=1, sort="created:desc") == ids[::-1]
    assert listed(user_id="any", sort="status") == ids
    assert list(client.iter_requests(search="no such description")) == []

    grids = list(client.iter_tiling_grids(count=1))
    assert grids == list(client.iter_tiling_grids())
    assert len(grids) >= 3
    assert grids == [client.get_tiling_grid(grid["id"]) for grid in grids]


def test_what_the_helper_functions_take_arrives(
    client: BatchProcessClient, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    """`create` with `SentinelHubRequest`, `tiling_grid_input` with buffers, `raster_output` and `s3_specification` with
    what they offer: the echo holds it, secrets apart, and the delivered raster shows it.
    """
    delivery = client.s3_specification(
        f"s3://{bucket}/o/<tileName>.tif", access_key=s3.access_key, secret_access_key=s3.secret_key, region="us-east-1"
    )
    cog = {"blockxsize": 64, "blockysize": 64, "overviewLevels": [2, 4], "resamplingAlgorithm": "nearest"}
    request = client.create(
        SentinelHubRequest(
            evalscript=RED,
            input_data=[SentinelHubRequest.input_data(DataCollection.SENTINEL2_L1C, maxcc=0.8)],
            responses=[SentinelHubRequest.output_response("default", MimeType.TIFF)],
            bbox=BBox((465300, 5079300, 465400, 5079400), CRS.UTM_33N),
        ),
        client.tiling_grid_input(0, 60, buffer_x=3, buffer_y=1),
        client.raster_output(delivery, overwrite=True, skip_existing=False, cog_output=True, cog_parameters=cog),
        instance_type="large",
        description="all of it",
        projectName="kept",
    )
    echo = request.request
    assert echo["input"] == {"type": "tiling-grid", "id": 0, "resolution": 60, "bufferX": 3, "bufferY": 1}
    assert echo["output"]["cogParameters"] == cog
    assert echo["output"]["delivery"]["s3"] == delivery["s3"] | {"accessKey": "***", "secretAccessKey": "***"}
    assert (echo["instanceType"], echo["description"], echo["projectName"]) == ("large", "all of it", "kept")

    client.start_job(request)
    done = wait_for(client, request)
    assert done.status is BatchRequestStatus.DONE, done.error
    (path,) = s3_files.glob(f"{bucket}/o/*.tif")
    with rasterio.MemoryFile(s3_files.cat_file(path)) as memory, memory.open() as dataset:
        assert dataset.shape == (334 + 2 * 1, 334 + 2 * 3)
        assert (dataset.profile["blockxsize"], dataset.overviews(1)) == (64, [2, 4])
        assert dataset.read().any()


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        (lambda client: client.get_request(UNKNOWN), 404, "There is no batch request"),
        (lambda client: client.update_request(UNKNOWN, "any"), 404, "There is no batch request"),
        (lambda client: client.start_analysis(UNKNOWN), 404, "There is no batch request"),
        (lambda client: client.start_job(UNKNOWN), 404, "There is no batch request"),
        (lambda client: client.stop_job(UNKNOWN), 404, "There is no batch request"),
        (lambda client: client.get_tiling_grid(99), 400, "Tiling grid 99 is not"),
    ],
)
def test_the_client_raises_at_once_for_what_is_not_there(
    client: BatchProcessClient, call: Callable[[BatchProcessClient], Any], status: int, text: str
) -> None:
    """The exception has the service's own words and keeps the status: eo-grow repeats a call after 404 and no other."""
    with pytest.raises(DownloadFailedException, match=text) as raised:
        call(client)
    assert raised.value.request_exception.response.status_code == status


def test_the_client_shows_why_a_request_or_an_action_is_refused(
    client: BatchProcessClient, order: Callable[..., BatchProcessRequest], s3: SeaweedFS, bucket: str
) -> None:
    """The words of a 400 reach the user: of `create` for a wrong resolution, of `stop_job` for a job not yet begun."""
    payload = body(s3, bucket)
    with pytest.raises(DownloadFailedException, match=r"Resolution 15 m is not offered .* choose 10"):
        client.create(payload["processRequest"], client.tiling_grid_input(1, 15), payload["output"])
    with pytest.raises(DownloadFailedException, match=r"(?s)400 Client Error.*STOP is not possible"):
        client.stop_job(order())


def test_the_session_reads_its_token_and_wrong_credentials_raise_at_once(hub: LocalHub) -> None:
    """`SentinelHubSession` decodes what it got; a wrong secret surfaces as oauthlib's own error, without a retry."""
    config = client_of(hub).config
    session = SentinelHubSession(config)
    assert session.info()["azp"] == hub.settings.client_id
    assert session.token["expires_at"] - session.info()["exp"] == pytest.approx(0, abs=5)
    config.sh_client_secret = "wrong"
    with pytest.raises(InvalidClientError, match="Invalid client"):
        SentinelHubSession(config)
