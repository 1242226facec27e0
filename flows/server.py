"""Prefect's server, before a run that a person waits for."""

from httpx import HTTPError
from prefect.client.orchestration import get_client

from tasks.errors import Unavailable


def wake_prefect() -> None:
    """Start Prefect's temporary server, or see that the one of PREFECT_API_URL answers.

    Raises:
        Unavailable: it does not.
    """
    try:
        with get_client(sync_client=True) as client:
            client.hello()
    except (HTTPError, RuntimeError) as error:
        raise Unavailable(
            f"Prefect's server does not answer: {error}. Start it with 'prefect server start', or unset "
            "PREFECT_API_URL: a run then uses a temporary one."
        ) from error
