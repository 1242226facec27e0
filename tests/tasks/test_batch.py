"""The batch request: found again, created once whatever happens on the way, analysed, started once, stopped."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
import s3fs
import shapely
from sentinelhub import BatchProcessClient
from shapely.geometry import shape

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tasks import batch as module
from tasks.batch import (
    Limits,
    Work,
    analyse_job,
    check_budget,
    check_not_paid,
    create_job,
    find_job,
    find_or_create,
    find_or_create_job,
    own_requests,
    process_request,
    restartable_from,
    start_job,
    stop_job,
    upload_geopackage,
)
from tasks.errors import BudgetExceeded, InvalidInput, JobFailed, Unavailable
from tasks.evalscript import Script
from tasks.service import Job, NotYet, Service, connect, get_job
from tasks.storage import Storage
from tests.localhub.watching import faults
from tests.tasks.conftest import SUMMER
from tests.tasks.faulty_server import Fault, FaultyServer

AREA = shapely.box(14.555, 45.868, 14.560, 45.872)
LIMITS = Limits()


@pytest.fixture(autouse=True)
def short_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIST_LAG_SECONDS", 1.0)
    monkeypatch.setattr(module, "ACTION_LAG_SECONDS", 0.5)
    monkeypatch.setattr(module, "REPEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "LOOK_AGAIN_SECONDS", 0.05)


@pytest.fixture
def client(service: Service) -> BatchProcessClient:
    return connect(service)


@pytest.fixture
def work(storage: Storage, red: Script, small_tiles: Path) -> Work:
    """A small request of its own fingerprint."""
    url = upload_geopackage(small_tiles.read_bytes(), "small", storage)
    request = process_request(None, "sentinel-2-l1c", SUMMER.start, SUMMER.end, 100, red)
    return Work("Test", uuid.uuid4().hex[:16], request, {"url": url}, storage.tiles_url)


def all_of(client: BatchProcessClient, work: Work) -> list[str]:
    """Ids of every request at the service that has the work's fingerprint."""
    return [one.request_id for one in client.iter_requests() if work.fingerprint in str(one.request)]


def wait_until(look: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end
        time.sleep(0.05)


def finished(client: BatchProcessClient, work: Work, storage: Storage) -> Job:
    """A request that is done."""
    job = start_job(client, analyse_job(client, create_job(client, work, storage)))
    wait_until(lambda: get_job(client, job.id).ended)
    return get_job(client, job.id)


# ---- the request ----


def test_the_request_says_area_period_script_and_a_file_per_output(red: Script) -> None:
    request = process_request(AREA, "sentinel-2-l2a", SUMMER.start, SUMMER.end, 80, red)
    assert shape(request["input"]["bounds"]["geometry"]).equals(AREA)
    assert request["input"]["bounds"]["properties"]["crs"].endswith("CRS84")
    assert request["input"]["data"][0]["type"] == "sentinel-2-l2a"
    assert request["input"]["data"][0]["dataFilter"] == {
        "timeRange": {"from": "2015-07-01T00:00:00Z", "to": "2015-09-30T23:59:59Z"},
        "maxCloudCoverage": 80,
    }
    assert [(one["identifier"], one["format"]["type"]) for one in request["output"]["responses"]] == [
        ("red", "image/tiff"),
        ("userdata", "application/json"),
    ]
    assert request["evalscript"] == red.source
    assert json.loads(json.dumps(request))["input"]["bounds"]["geometry"]["type"] == "Polygon"


def test_the_service_takes_the_request_and_keeps_no_secret_in_sight(
    client: BatchProcessClient, work: Work, storage: Storage, s3: SeaweedFS
) -> None:
    job = create_job(client, work, storage)
    told = client.get_request(job.id)
    assert (job.status, job.found) == ("CREATED", False)
    assert told.request["description"] == work.description == f"eopatch-flow Test [{work.fingerprint}]"
    assert s3.secret_key not in str(told.request) + repr(work) + repr(job) + repr(storage)
    assert told.request["output"]["delivery"]["s3"]["url"] == (
        f"{storage.tiles_url}/<requestId>/<tileName>/<outputId>.<format>"
    )


def test_a_delivery_role_takes_the_place_of_keys(client: BatchProcessClient, work: Work, storage: Storage) -> None:
    role = "arn:aws:iam::123456789012:role/delivery"
    job = create_job(client, work, storage.model_copy(update={"iam_role_arn": role}))
    request = client.get_request(job.id).request
    assert request["output"]["delivery"]["s3"]["iamRoleARN"] == role
    assert "accessKey" not in str(request)


def test_delivery_needs_a_role_or_keys(
    client: BatchProcessClient, work: Work, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InvalidInput, match=r"give storage.iam_role_arn, or S3 keys as a block or in the environment"):
        create_job(client, work, storage.model_copy(update={"endpoint_url": None}))


# ---- found again ----


def test_a_request_is_found_by_its_fingerprint_among_others(
    client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    assert find_job(client, work, storage) is None
    create_job(client, replace(work, fingerprint=uuid.uuid4().hex[:16]), storage)
    job = create_job(client, work, storage)
    create_job(client, replace(work, fingerprint=uuid.uuid4().hex[:16]), storage)
    found = find_job(client, work, storage)
    assert found is not None
    assert (found.id, found.found) == (job.id, True)


def test_a_finished_request_comes_first_until_its_files_are_removed(
    client: BatchProcessClient, work: Work, storage: Storage, s3_files: s3fs.S3FileSystem
) -> None:
    done = finished(client, work, storage)
    assert done.status == "DONE"
    newer = create_job(client, work, storage)
    found = find_job(client, work, storage)
    assert found is not None
    assert found.id == done.id

    folder = storage.tiles_url.removeprefix("s3://")
    manifest = f"featureManifest-{done.id}.gpkg"
    s3_files.mv(f"{folder}/{manifest}", f"{folder}/{done.id}/{manifest}")
    found = find_job(client, work, storage)
    assert found is not None
    assert found.id == done.id

    s3_files.rm(f"{folder}/{done.id}/{manifest}")
    found = find_job(client, work, storage)
    assert found is not None
    assert found.id == newer.id


def test_a_failed_request_is_not_found_again(client: BatchProcessClient, work: Work, storage: Storage) -> None:
    broken = replace(work, process_request={**work.process_request, "evalscript": "//VERSION=3\nlet a = ;"})
    job = create_job(client, broken, storage)
    with pytest.raises(
        JobFailed, match=rf"(?s)Request {job.id} failed in its analysis: .*SyntaxError.*\nNothing was bought"
    ):
        analyse_job(client, job)
    assert find_job(client, work, storage) is None


def test_a_second_run_attaches_and_an_expensive_one_creates_nothing(
    client: BatchProcessClient, service: Service, work: Work, storage: Storage
) -> None:
    with pytest.raises(BudgetExceeded):
        find_or_create.fn(work, storage, service, LIMITS, 1001, 3)
    assert all_of(client, work) == []
    first = find_or_create.fn(work, storage, service, LIMITS, 1000, 3)
    second = find_or_create.fn(work, storage, service, LIMITS, 1001, 3)
    assert (first.found, second.found, first.id) == (False, True, second.id)


# ---- created once ----


@pytest.mark.parametrize("status", [502, 504, 0])
@pytest.mark.parametrize("executed", [True, False])
def test_a_request_whose_creation_got_no_answer_is_looked_up_and_never_sent_again(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage, status: int, executed: bool
) -> None:
    fault = Fault("POST", "/process", status, "gateway", executed=executed)
    down = Fault("GET", "/process", 502, "gateway")
    with FaultyServer(hub.base_url, (fault, down)) as server:
        through = connect(Service(base_url=server.base_url))
        if executed:
            job = create_job(through, work, storage)
            assert [job.id] == all_of(client, work)
            assert not job.found
        else:
            with pytest.raises(Unavailable, match=r"not known .*does not appear in the list. Run again"):
                create_job(through, work, storage)
            assert all_of(client, work) == []
        assert server.count("POST", "/process") == 1


def test_an_answer_to_a_creation_that_cannot_be_understood_is_looked_up(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    fault = Fault("POST", "/process", 200, "<html>", executed=True)
    with FaultyServer(hub.base_url, (fault,)) as server:
        job = create_job(connect(Service(base_url=server.base_url)), work, storage)
    assert [job.id] == all_of(client, work)


def test_a_creation_that_the_service_has_no_time_for_is_sent_again(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    with FaultyServer(hub.base_url, (Fault("POST", "/process", 429),) * 2) as server:
        job = create_job(connect(Service(base_url=server.base_url)), work, storage)
        assert server.count("POST", "/process") == 3
    assert [job.id] == all_of(client, work)


def test_a_service_that_never_has_time_is_given_up(hub: LocalHub, work: Work, storage: Storage) -> None:
    with FaultyServer(hub.base_url, (Fault("POST", "/process", 429),) * 200) as server, pytest.raises(NotYet):
        create_job(connect(Service(base_url=server.base_url)), work, storage)


def test_a_request_that_the_service_refuses_is_the_inputs_fault(
    client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    tiles_input = {"type": "tiling-grid", "id": 1, "resolution": 15.0}
    with pytest.raises(InvalidInput, match=r"Sentinel Hub refused the request \(400\): "):
        create_job(client, replace(work, tiles_input=tiles_input), storage)
    assert all_of(client, work) == []


# ---- analysed, started, stopped ----


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/analyse", 404),
        Fault("POST", "/analyse", 429),
        Fault("POST", "/analyse", 502, executed=True),
        Fault("POST", "/analyse", 0, executed=True),
    ],
)
def test_an_analysis_survives_what_a_new_request_may_meet(
    hub: LocalHub, work: Work, storage: Storage, fault: Fault
) -> None:
    with FaultyServer(hub.base_url, (fault,)) as server:
        through = connect(Service(base_url=server.base_url))
        job = analyse_job(through, create_job(through, work, storage))
    assert (job.status, job.found) == ("ANALYSIS_DONE", False)


def test_an_analysis_that_fails_at_once_after_its_answer_was_lost_tells_the_reason(
    hub: LocalHub, work: Work, storage: Storage
) -> None:
    broken = replace(work, process_request={**work.process_request, "evalscript": "//VERSION=3\nlet a = ;"})
    with FaultyServer(hub.base_url, (Fault("POST", "/analyse", 502, executed=True),)) as server:
        through = connect(Service(base_url=server.base_url))
        with pytest.raises(JobFailed, match="SyntaxError"):
            analyse_job(through, create_job(through, broken, storage))


def test_a_request_that_is_further_on_is_not_analysed_again(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    job = finished(client, work, storage)
    with FaultyServer(hub.base_url) as server:
        through = connect(Service(base_url=server.base_url))
        assert start_job(through, analyse_job(through, job)).status == "DONE"
        assert [path for method, path in server.seen if method == "POST" and not path.endswith("/token")] == []


@pytest.mark.parametrize("executed", [True, False])
def test_a_start_whose_answer_got_lost_is_looked_up_and_never_sent_again(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage, executed: bool
) -> None:
    job = analyse_job(client, create_job(client, work, storage))
    with FaultyServer(hub.base_url, (Fault("POST", "/start", 502, executed=executed),)) as server:
        through = connect(Service(base_url=server.base_url))
        if executed:
            assert start_job(through, job).status in {"PROCESSING", "DONE"}
        else:
            with pytest.raises(Unavailable, match="502"):
                start_job(through, job)
        assert server.count("POST", "/start") == 1


def test_a_start_that_another_run_has_sent_already_is_fine(
    client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    job = analyse_job(client, create_job(client, work, storage))
    finished_by_other = start_job(client, job)
    wait_until(lambda: get_job(client, finished_by_other.id).ended)
    assert start_job(client, job).status == "DONE"


def test_a_question_without_an_answer_after_the_start_does_not_lose_the_job(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    job = analyse_job(client, create_job(client, work, storage))
    with FaultyServer(hub.base_url, (Fault("GET", job.id, 502),) * 2) as server:
        assert start_job(connect(Service(base_url=server.base_url)), job).id == job.id


def test_a_stopped_request_is_started_again(client: BatchProcessClient, work: Work, storage: Storage) -> None:
    job = analyse_job(client, create_job(client, work, storage))
    stop_job(client, job)
    stopped = find_job(client, work, storage)
    assert stopped is not None
    assert (stopped.status, stopped.reason) == ("STOPPED", "USER_ACTION")
    assert start_job(client, analyse_job(client, stopped)).status != "STOPPED"
    wait_until(lambda: get_job(client, job.id).status == "DONE")


STOPPED_AT = datetime(2026, 8, 1, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("job", "moment"),
    [
        (Job("r1", "STOPPED", "USER_ACTION", action="STOP", acted_at=STOPPED_AT), STOPPED_AT + timedelta(minutes=30)),
        (Job("r1", "PROCESSING", action="STOP", acted_at=STOPPED_AT), STOPPED_AT + timedelta(minutes=30)),
        (Job("r1", "STOPPED", "OUT_OF_PU", action="START", acted_at=STOPPED_AT), None),
        (Job("r1", "STOPPED", "USER_ACTION", action="STOP"), None),
        (Job("r1", "PROCESSING", action="START", acted_at=STOPPED_AT), None),
        (Job("r1", "DONE", action="STOP", acted_at=STOPPED_AT), None),
    ],
)
def test_a_request_can_be_started_half_an_hour_after_its_user_stopped_it(job: Job, moment: datetime | None) -> None:
    assert restartable_from(job) == moment


def test_a_stop_whose_answer_got_lost_is_sent_again(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    job = analyse_job(client, create_job(client, work, storage))
    with FaultyServer(hub.base_url, (Fault("POST", "/stop", 502, executed=True),)) as server:
        stopped = stop_job(connect(Service(base_url=server.base_url)), job)
        assert (stopped.status, stopped.action, server.count("POST", "/stop")) == ("STOPPED", "STOP", 2)
    assert stop_job(client, job).status == "STOPPED"


def test_our_requests_are_known_by_their_description(client: BatchProcessClient, work: Work, storage: Storage) -> None:
    ours = create_job(client, replace(work, name="An [odd] name", fingerprint="0123456789abcdef"), storage)
    foreign = create_job(client, work, storage)
    client.update_request(foreign.id, description="eopatch-flow by hand")
    found = {request.job.id: request for request in own_requests(client)}
    assert (found[ours.id].name, found[ours.id].fingerprint) == ("An [odd] name", "0123456789abcdef")
    assert foreign.id not in found


# ---- money, tiles ----


def test_a_request_that_an_earlier_run_has_noted_is_found_before_the_list_has_it(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    with faults(hub, hidden_from_list_seconds=3600):
        first = create_job(client, work, storage)
        again = find_or_create_job(client, work, storage, LIMITS, 1.0, 1, first.id)
        assert all_of(client, work) == []
    assert (again.id, again.found) == (first.id, True)
    assert all_of(client, work) == [first.id]


def test_a_noted_request_that_the_service_does_not_know_is_created_anew(
    client: BatchProcessClient, work: Work, storage: Storage
) -> None:
    created = find_or_create_job(client, work, storage, LIMITS, 1.0, 1, str(uuid.uuid4()))
    assert not created.found
    assert all_of(client, work) == [created.id]


@pytest.mark.parametrize("status", [429, 503])
def test_nothing_is_created_while_it_is_not_known_whether_the_noted_request_exists(
    hub: LocalHub, client: BatchProcessClient, work: Work, storage: Storage, status: int
) -> None:
    with (
        faults(hub, api=[{"operation": "get", "status": status, "times": 100}]),
        pytest.raises(Unavailable, match=str(status)),
    ):
        find_or_create_job(client, work, storage, LIMITS, 1.0, 1, str(uuid.uuid4()))
    assert all_of(client, work) == []


@pytest.mark.parametrize(("price", "cap"), [(1000.0, 1000.0), (0.0, 1.0)])
def test_a_price_up_to_the_cap_is_allowed(price: float, cap: float) -> None:
    check_budget(price, 4, Limits(max_pu=cap))


def test_a_price_above_the_cap_is_refused_with_figures_that_differ() -> None:
    with pytest.raises(BudgetExceeded, match=r"4 tiles may cost up to 1,001 PU, but limits.max_pu is 1,000; nothing"):
        check_budget(1000.2, 4, Limits(max_pu=1000))
    with pytest.raises(BudgetExceeded, match=r"up to 2,345,679 PU, but limits.max_pu is 1,234,567.5; nothing was"):
        check_budget(2_345_678.9, 4, Limits(max_pu=1_234_567.5))


def test_a_geopackage_is_uploaded_once(storage: Storage, s3_files: s3fs.S3FileSystem) -> None:
    url = upload_geopackage(b"one", "digest", storage)
    assert upload_geopackage(b"two", "digest", storage) == url == f"{storage.tiles_url}/grids/digest.gpkg"
    assert s3_files.cat_file(url) == b"one"


def test_localhub_keeps_no_key_in_its_list(hub: LocalHub, client: BatchProcessClient, s3: SeaweedFS) -> None:
    session = client.client.session.session_headers
    text = requests.get(f"{hub.base_url}/api/v2/batch/process", headers=session, timeout=10).text
    assert s3.secret_key not in text


def test_what_failed_after_it_had_cost_something_is_bought_again_only_when_asked() -> None:
    failed = Job("abc", "FAILED", reason="the bucket is gone", cost_pu=120)
    with pytest.raises(
        JobFailed, match=r"Request abc .* failed after 120.0 PU: the bucket is gone.*set limits.buy_again"
    ):
        check_not_paid([failed], Limits())
    check_not_paid([failed], Limits(buy_again=True))
    check_not_paid([replace(failed, cost_pu=0), replace(failed, status="DONE")], Limits())
