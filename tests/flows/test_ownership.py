"""Who owns the work, and what becomes of a request whose run is cancelled: with real processes and a real Prefect."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling
from sentinelhub import BatchProcessRequest, BatchRequestStatus
from sentinelhub.api.batch.process import StoppedStatusReason

from flows.conclusion import Summary
from flows.land_cover import land_cover
from flows.ownership import stop_what_was_left
from flows.parameters import LandCover
from localhub.sample import SampleInfo
from localhub.server import LocalHub
from localhub.settings import Settings
from tasks.errors import LeaseHeld, NotYet, RunTimedOut
from tasks.lease import Lease
from tests.localhub.batch_requests import client_of, wait_for
from tests.localhub.watching import faults

pytestmark = pytest.mark.usefixtures("prefect_server")

PROGRAM = Path(sysconfig.get_path("scripts")) / "eopatch-flow"
SLUG = "small-20190101-20190310"
TILE_SECONDS = 1.5
T = TypeVar("T")


@pytest.fixture(scope="module")
def slow_hub(
    small_hub: LocalHub, small_sample: SampleInfo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalHub]:
    """A localhub whose jobs can be started again 4 s after a stop."""
    changes = {
        "data_dir": tmp_path_factory.mktemp("slow-hub"),
        "archive": small_sample.folder,
        "restart_seconds": 4,
    }
    with LocalHub(Settings.model_validate(small_hub.settings.model_dump() | changes)) as hub:
        yield hub


@pytest.fixture
def slow(parameters: LandCover, slow_hub: LocalHub) -> Iterator[LandCover]:
    """The four tiles, by the slow hub, looked at often."""
    with faults(slow_hub, tile_seconds=TILE_SECONDS):
        yield changed(
            parameters, service={"base_url": slow_hub.base_url}, run={"poll_seconds": 1, "patience_minutes": 31}
        )


def test_a_run_that_is_told_to_end_stops_its_request_and_the_next_one_goes_on(
    slow: LandCover, slow_hub: LocalHub, tmp_path: Path
) -> None:
    with faults(slow_hub, tile_seconds=4), running(slow, tmp_path) as process:
        await_converted(slow)
        process.send_signal(signal.SIGTERM)
        _, told = ended(process)
        request = only_request(slow, slow_hub)
        assert was_stopped(wait_for(client_of(slow_hub), request))
    assert process.returncode == 130, told
    assert re.search(rf"Request {request.request_id} was stopped.*run again from [0-9: -]+ UTC on", told)
    assert "Traceback" not in told
    assert (lease_of(slow).released, lease_of(slow).request_id) == (True, request.request_id)
    before = markers(slow)
    assert 0 < len(before) < 4

    summary = run(slow)
    assert (summary.bought, summary.converted) == (True, 4 - len(before))
    assert {path: markers(slow)[path] for path in before} == before
    assert len(markers(slow)) == 4
    assert only_request(slow, slow_hub).request_id == request.request_id


def test_a_request_that_is_to_be_left_goes_on_after_ctrl_c(
    slow: LandCover, slow_hub: LocalHub, prefect_home: Path, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C to all processes: to Prefect's temporary server too."""
    leaving = changed(slow, run={"on_abort": "leave"})
    with running(leaving, tmp_path, PREFECT_API_URL="", PREFECT_HOME=str(prefect_home)) as process:
        await_converted(leaving)
        os.killpg(process.pid, signal.SIGINT)
        _, told = ended(process)
    assert process.returncode == 130, told
    assert "goes on and costs, as run.on_abort asks" in told
    assert (lease_of(slow).released, lease_of(slow).on_abort) == (True, "leave")
    assert wait_for(client_of(slow_hub), only_request(slow, slow_hub)).status is BatchRequestStatus.DONE


def test_a_run_whose_whole_process_group_is_told_to_end_stops_its_request_and_leaves_no_process(
    slow: LandCover, slow_hub: LocalHub, prefect_home: Path, tmp_path: Path
) -> None:
    """Its temporary server gets SIGTERM too, and has to live until the run has told it of its end."""
    home = {"PREFECT_API_URL": "", "PREFECT_HOME": str(prefect_home)}
    with faults(slow_hub, tile_seconds=4), running(slow, tmp_path, **home) as process:
        await_converted(slow)
        os.killpg(process.pid, signal.SIGTERM)
        _, told = ended(process)
        request = only_request(slow, slow_hub)
        assert was_stopped(wait_for(client_of(slow_hub), request))
        assert process.returncode == 130, told
        assert f"Request {request.request_id} was stopped" in told
        assert lease_of(slow).released
        eventually(lambda: not exists(process.pid), seconds=30)


def test_the_temporary_server_of_a_run_that_is_killed_ends(slow: LandCover, prefect_home: Path, tmp_path: Path) -> None:
    with running(slow, tmp_path, PREFECT_API_URL="", PREFECT_HOME=str(prefect_home)) as process:
        eventually(lambda: lease_path(slow).exists())
        process.kill()
        process.wait()
        eventually(lambda: not exists(process.pid), seconds=30)


def exists(group: int) -> bool:
    """Whether there is a process left in a process group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_second_run_waits_for_the_first_or_says_who_has_the_work(
    slow: LandCover, slow_hub: LocalHub, tmp_path: Path
) -> None:
    with running(slow, tmp_path) as first:
        with faults(slow_hub, tile_seconds=10):
            eventually(lambda: lease_path(slow).exists() and lease_of(slow).request_id)
            with pytest.raises(
                LeaseHeld, match=rf"being done by run land-cover Small .* \(pid {first.pid}, user"
            ) as caught:
                run(changed(slow, run={"wait_minutes": 0}))
        assert "wait for it, or stop it" in str(caught.value)
        with faults(slow_hub, tile_seconds=TILE_SECONDS):
            summary = run(slow)
        output, _ = ended(first)
    assert "4 converted, 4 labelled" in output
    assert summary.message == "4 of 4 EOPatches are ready. Nothing was bought; 0 converted, 0 labelled."
    assert only_request(slow, slow_hub).status is BatchRequestStatus.DONE


def test_a_run_that_lasts_too_long_stops_its_request_and_is_told_when_it_can_go_on(
    parameters: LandCover, small_hub: LocalHub
) -> None:
    """Of a service that has the documented 30 minutes. Of the job's four tiles at most three are begun by then."""
    short = changed(parameters, run={"timeout_hours": 10 / 3600, "poll_seconds": 1})
    with faults(small_hub, tile_seconds=10):
        with pytest.raises(RunTimedOut, match=r"as long as run\.timeout_hours allows\. Request .* was stopped"):
            run(short)
        stopped = wait_for(client_of(small_hub), only_request(parameters, small_hub))
    assert was_stopped(stopped)
    moment = stopped.user_action_updated
    assert moment is not None
    with pytest.raises(NotYet, match=rf"was stopped at {moment:%H:%M} UTC; it can be started again from .* Run again"):
        run(parameters)
    assert only_request(parameters, small_hub).status is BatchRequestStatus.STOPPED


def test_a_run_that_is_cancelled_in_prefect_stops_its_request(slow: LandCover, slow_hub: LocalHub) -> None:
    with faults(slow_hub, tile_seconds=5), served() as deployment, get_client(sync_client=True) as prefect:
        found = prefect.create_flow_run_from_deployment(deployment, parameters=slow.model_dump(mode="json"))
        await_converted(slow)
        prefect.set_flow_run_state(found.id, Cancelling())
        stopped = wait_for(client_of(slow_hub), only_request(slow, slow_hub))
        assert was_stopped(stopped)
        eventually(lambda: (state := prefect.read_flow_run(found.id).state) and state.is_cancelled())
    lease = lease_of(slow)
    assert (lease.released, lease.run_id, lease.deployment) == (True, str(found.id), "served")


def test_the_request_of_a_cancelled_run_that_was_killed_is_stopped_by_prefects_hook(
    slow: LandCover, slow_hub: LocalHub, tmp_path: Path
) -> None:
    with running(slow, tmp_path) as process:
        eventually(lambda: lease_path(slow).exists() and lease_of(slow).request_id)
        client, request = client_of(slow_hub), only_request(slow, slow_hub)
        wait_for(client, request, ("PROCESSING",))
        process.kill()
    assert not lease_of(slow).released
    with get_client(sync_client=True) as prefect:
        found = prefect.read_flow_run(UUID(lease_of(slow).run_id))
    stop_what_was_left(land_cover, found, Cancelling())
    assert was_stopped(wait_for(client, request))
    assert lease_of(slow).released
    before = lease_path(slow).read_bytes()
    stop_what_was_left(land_cover, found, Cancelling())
    assert lease_path(slow).read_bytes() == before


def changed(parameters: LandCover, **parts: dict[str, object]) -> LandCover:
    content = parameters.model_dump()
    return LandCover.model_validate(content | {name: content[name] | part for name, part in parts.items()})


def run(parameters: LandCover) -> Summary:
    """Run the flow in this process; errors are raised."""
    summary = land_cover(**{name: getattr(parameters, name) for name in LandCover.model_fields})
    assert isinstance(summary, Summary)
    return summary


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Output and errors of a run that comes to its end; where it does not, the test fails and shows its threads."""
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        _, threads = process.communicate(timeout=60)
        raise AssertionError(threads) from None


@contextmanager
def running(parameters: LandCover, folder: Path, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """The command line, in a process group of its own, with the tests' Prefect server unless `changes` say else."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    heeding = ["env", "--default-signal=INT"]  # what is started in the background ignores Ctrl-C otherwise
    with subprocess.Popen(
        [*heeding, PROGRAM, "run", str(config)],
        env=environment() | {"PYTHONFAULTHANDLER": "1"} | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def served() -> Iterator[UUID]:
    """The flow, served in a process of its own; the deployment's id."""
    script = "from flows.land_cover import land_cover; land_cover.serve(name='served')"
    quick = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment() | quick, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield eventually(deployment_id)
        finally:
            process.terminate()


def environment() -> dict[str, str]:
    return os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(Path(__file__).parents[2])}


def deployment_id() -> UUID | None:
    with get_client(sync_client=True) as client:
        found = client.read_deployments()
    return next((one.id for one in found if one.name == "served"), None)


def await_converted(parameters: LandCover) -> None:
    eventually(lambda: markers(parameters))


def markers(parameters: LandCover) -> dict[Path, int]:
    """When each EOPatch was completed."""
    found = (Path(parameters.storage.destination) / SLUG / "eopatches").glob("*/meta_info/BATCH.json.gz")
    return {path: path.stat().st_mtime_ns for path in found}


def lease_path(parameters: LandCover) -> Path:
    return Path(parameters.storage.destination) / SLUG / "lease.json"


def lease_of(parameters: LandCover) -> Lease:
    return Lease.from_json(lease_path(parameters).read_bytes())


def only_request(parameters: LandCover, hub: LocalHub) -> BatchProcessRequest:
    """The one request that was ever created for this test's bucket."""
    place = parameters.storage.tiles_url + "/"
    (found,) = [
        one
        for one in client_of(hub).iter_requests()
        if one.request["output"]["delivery"]["s3"]["url"].startswith(place)
    ]
    return found


def was_stopped(request: BatchProcessRequest) -> bool:
    """Whether a user's STOP ended it."""
    return (request.status, request.stopped_status_reason) == (
        BatchRequestStatus.STOPPED,
        StoppedStatusReason.USER_ACTION,
    )


def eventually(look: Callable[[], T | None], seconds: float = 180) -> T:
    """What ``look`` gives as soon as it gives anything."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)
    return found
