"""Prefect's server, before a run that a person waits for."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from httpx import HTTPError
from prefect.client.orchestration import get_client

from tasks.errors import Unavailable


def wake_prefect() -> None:
    """Start Prefect's temporary server, or see that the one of PREFECT_API_URL answers.

    Raises:
        Unavailable: it does not.
    """
    try:
        with _beyond_ctrl_c(), get_client(sync_client=True) as client:
            client.hello()
    except (HTTPError, RuntimeError) as error:
        raise Unavailable(
            f"Prefect's server does not answer: {error}. Start it with 'prefect server start', or unset "
            "PREFECT_API_URL: a run then uses a temporary one."
        ) from error


@contextmanager
def _beyond_ctrl_c() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all processes, from a server that is started within the block.

    A run that is interrupted needs its server to the end. A child inherits which signals are blocked (sigprocmask(2)).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
