"""``eopatch-flow serve``: deployments without a work pool, on a real Prefect server, until Ctrl-C."""

import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL
from sentinelhub import BatchRequestStatus

from flows.parameters import LandCover
from flows.serving import NAME, served
from localhub.server import LocalHub
from tasks.errors import InvalidInput
from tests.localhub.batch_requests import client_of, wait_for
from tests.localhub.watching import faults

PROGRAM = Path(sysconfig.get_path("scripts")) / "eopatch-flow"
EVENTUALLY_SECONDS = 120.0
T = TypeVar("T")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("prefect_server")
def test_a_run_from_the_ui_is_taken_and_the_end_of_serving_stops_its_request_and_the_schedules(
    number: signal.Signals, parameters: LandCover, small_hub: LocalHub, tmp_path: Path
) -> None:
    with faults(small_hub, tile_seconds=20), get_client(sync_client=True) as client:
        with serving(parameters, tmp_path, "--cron", "0 6 3 * *") as process:
            eventually(lambda: "Serving" in (tmp_path / "told").read_text())
            land_cover, orphans = deployment("land-cover"), deployment("stop-orphans")
            assert schedules(land_cover) == ["cron='0 6 3 * *'"]
            assert schedules(orphans) == ["interval=datetime.timedelta(seconds=300)"]
            assert land_cover.parameters["storage"]["destination"] == parameters.storage.destination
            found = client.create_flow_run_from_deployment(land_cover.id)
            (request,) = eventually(lambda: requests_of(parameters, small_hub))
            wait_for(client_of(small_hub), request, ("PROCESSING",))
            end(process, number)
            assert process.wait(60) == 0, (tmp_path / "told").read_text()
        assert wait_for(client_of(small_hub), request).status is BatchRequestStatus.STOPPED
        eventually(lambda: (state := client.read_flow_run(found.id).state) and state.is_cancelled())
        assert deployment("land-cover").paused
        assert deployment("stop-orphans").paused
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0].startswith(f"Serving land-cover/{NAME} and stop-orphans/{NAME} at http://127.0.0.1:")
    assert told[1:] == ["Ended. Schedules are paused until the next start."]


@pytest.mark.parametrize(("cron", "on", "expected"), [(None, True, 0), ("0 6 3 * *", False, 0), ("0 6 3 * *", True, 1)])
def test_schedules_are_on_or_off_by_option(cron: str | None, on: bool, expected: int) -> None:
    land_cover, orphans = served(LandCover(), cron=cron, schedules=on)
    assert len(land_cover.schedules or []) == expected
    assert all(isinstance(each.schedule, CronSchedule) for each in land_cover.schedules or [])
    assert [each.schedule.interval for each in orphans.schedules or []] == [timedelta(minutes=5)] * on  # type: ignore[union-attr]


def test_both_deployments_have_the_same_service_and_storage_and_run_one_at_a_time() -> None:
    parameters = LandCover.model_validate(
        {"service": {"credentials_block": "mine"}, "storage": {"credentials_block": "mine"}}
    )
    land_cover, orphans = served(parameters, cron=None, schedules=True)
    assert LandCover.model_validate(land_cover.parameters) == parameters
    assert orphans.parameters == {name: land_cover.parameters[name] for name in ("service", "storage")}
    assert (land_cover.concurrency_limit, orphans.concurrency_limit) == (1, 1)


def test_a_schedule_that_cannot_be_read_is_told() -> None:
    with pytest.raises(InvalidInput, match="'every month' is no cron expression; give five fields"):
        served(LandCover(), cron="every month", schedules=True)


def test_serving_without_a_server_that_stays_is_refused(tmp_path: Path) -> None:
    told = subprocess.run(
        [PROGRAM, "serve"],
        env=os.environ | {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 1
    assert told.stderr.startswith("eopatch-flow: Serving needs a Prefect server that stays")
    assert "Traceback" not in told.stderr


@contextmanager
def serving(parameters: LandCover, folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, in a process group of its own, in an empty folder."""
    config, place = folder / "config.yaml", folder / "empty"
    place.mkdir()
    config.write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    environment = os.environ | {
        "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_RUNNER_POLL_FREQUENCY": "1", "PYTHONUNBUFFERED": "1"
    }  # fmt: skip
    with (folder / "told").open("w") as told:
        process = subprocess.Popen(
            [PROGRAM, "serve", str(config), *options],
            cwd=place,
            env=environment,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """As a terminal's Ctrl-C, which all processes get, or as a service manager does."""
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def deployment(flow: str) -> DeploymentResponse:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"{flow}/{NAME}")


def schedules(of: DeploymentResponse) -> list[str]:
    return [str(each.schedule).split(" timezone")[0].split(" anchor")[0] for each in of.schedules if each.active]


def requests_of(parameters: LandCover, hub: LocalHub) -> list[object]:
    place = parameters.storage.tiles_url + "/"
    return [each for each in client_of(hub).iter_requests() if place in str(each.request)]


def eventually(ask: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + EVENTUALLY_SECONDS
    while not (answer := ask()):
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.3)
    return answer
