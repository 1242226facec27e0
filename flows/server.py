"""Prefect's server, before a run that a person waits for."""

import atexit
import os
import subprocess
import sys

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import PREFECT_API_URL

from tasks.errors import Unavailable

STOP_SECONDS = 10.0
"""How long the temporary server may take to end; about 1 s as a rule."""
SERVER_SETTINGS = {"PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"}
"""Kinds of blocks are listed for people before a UI, which the temporary server has not; collecting them takes 1 s."""


def wake_prefect() -> None:
    """Start a temporary server of Prefect, or see that the one of PREFECT_API_URL answers.

    Prefect would start one itself, but that one dies of the signals that end a run, and outlives a run that is killed.

    Raises:
        Unavailable: it does not answer.
    """
    if not PREFECT_API_URL.value():
        _start()
    try:
        with get_client(sync_client=True) as client:
            client.hello()
    except (HTTPError, RuntimeError) as error:
        raise Unavailable(
            f"Prefect's server does not answer: {error}. Start it with 'prefect server start', or unset "
            "PREFECT_API_URL: a run then uses a temporary one."
        ) from error


def _start() -> None:
    """Start :mod:`flows.temporary_server`, and let the whole process use it to its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.temporary_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | SERVER_SETTINGS,
    )
    atexit.register(_stop, process)  # before Prefect's own: they run first, and send what is left of log and events
    os.environ["PREFECT_API_URL"] = f"{process.stdout.readline().strip() if process.stdout else ''}/api"
    refresh_global_settings_context()


def _stop(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
