"""Serving the flows on one machine, without a work pool: one process takes their runs and starts a process for each."""

import asyncio
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, cast

import typer
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.land_cover import land_cover
from flows.parameters import LandCover
from flows.server import wake_prefect
from flows.stop_orphans import stop_orphans
from tasks.errors import InvalidInput

NAME = "this-machine"
"""Name of the deployments."""
ORPHANS_EVERY = timedelta(minutes=5)
LOOK_SECONDS = 0.2
"""How often the runner looks whether it is to end."""


def serve_flows(parameters: LandCover, *, cron: str | None, schedules: bool) -> None:
    """Take runs of ``land-cover/this-machine`` and ``stop-orphans/this-machine`` until Ctrl-C or SIGTERM.

    At the end schedules are paused, and runs that are under way are cancelled: they stop their batch requests.

    Args:
        parameters: of the land-cover flow, and of the service and storage that are searched for orphans.
        cron: when the land-cover flow runs by itself, UTC; None for on demand.
        schedules: whether anything runs by itself.

    Raises:
        InvalidInput: there is no server that stays, or the schedule cannot be read.
        Unavailable: the server does not answer.
    """
    if not PREFECT_API_URL.value():
        raise InvalidInput(
            "Serving needs a Prefect server that stays: start one with 'prefect server start', and tell where it is "
            "with 'prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api'."
        )
    wake_prefect()
    runner = Runner(name=NAME, pause_on_shutdown=True)
    names = []
    for deployment in served(parameters, cron=cron, schedules=schedules):
        runner.add_deployment(deployment)
        names.append(f"{deployment.flow_name}/{deployment.name}")
    typer.echo(f"Serving {' and '.join(names)} at {PREFECT_UI_URL.value()}, until Ctrl-C.")
    _run_until_told(runner)
    typer.echo("Ended. Schedules are paused until the next start.")


def served(parameters: LandCover, *, cron: str | None, schedules: bool) -> list[RunnerDeployment]:
    """Give the deployments; as :func:`serve_flows`."""
    content = parameters.model_dump(mode="json", exclude_defaults=True)  # the form's schema takes few of the nulls
    shared: dict[str, Any] = {name: content[name] for name in ("service", "storage") if name in content}
    timing: dict[str, Any] = {"schedule": _schedule(cron)} if cron and schedules else {}
    often: dict[str, Any] = {"interval": ORPHANS_EVERY} if schedules else {}
    common: dict[str, Any] = {"tags": ["land-cover"], "entrypoint_type": EntrypointType.MODULE_PATH}
    made = [
        land_cover.to_deployment(
            NAME,
            parameters=content,
            description="From an area to labelled EOPatches. Runs on this machine wait for each other.",
            concurrency_limit=_one(ConcurrencyLimitStrategy.ENQUEUE),
            **common,
            **timing,
        ),
        stop_orphans.to_deployment(
            NAME,
            parameters=shared,
            description="Stops requests that a run of ours has started and that no run waits for any more.",
            concurrency_limit=_one(ConcurrencyLimitStrategy.CANCEL_NEW),
            **common,
            **often,
        ),
    ]
    return cast(list[RunnerDeployment], made)  # they are also typed for coroutines


def _run_until_told(runner: Runner) -> None:
    """Run it in a thread of its own: Prefect's own way of ending on Ctrl-C kills runs before they can stop anything."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, _running(runner, told)).result()


async def _running(runner: Runner, told: threading.Event) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in the runs too: they are cancelled, once, by SIGTERM
    work = asyncio.create_task(runner.start())
    while not (work.done() or (told.is_set() and runner.started)):  # noqa: ASYNC110 - another thread sets it
        await asyncio.sleep(LOOK_SECONDS)
    if not work.done():
        await runner.astop()
    await work


def _one(strategy: ConcurrencyLimitStrategy) -> ConcurrencyLimitConfig:
    return ConcurrencyLimitConfig(limit=1, collision_strategy=strategy)


def _schedule(cron: str) -> CronSchedule:
    try:
        return CronSchedule(cron=cron, timezone="UTC")
    except ValidationError as error:
        raise InvalidInput(f"'{cron}' is no cron expression; give five fields, such as '0 6 3 * *'.") from error
