"""What the tests of faults and bills look at: the bucket as a client sees it, and what localhub remembers."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import requests
import s3fs
from sentinelhub import BatchProcessClient, BatchProcessRequest

from localhub.faults import Faults
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.store import Feature, Store
from tests.localhub.batch_requests import RED, access, process_request, session_of

Rows = dict[str, tuple[str, str | None, int]]
"""Status, error and delivered by tile."""


def start_tiles(
    client: BatchProcessClient, s3: SeaweedFS, grid: str, folder: str, script: str = RED, **output: Any
) -> BatchProcessRequest:
    """Create and start a request over the features of a GeoPackage, one file a tile below `folder`."""
    request = client.create(
        process_request(script),
        client.geopackage_input(access(s3, grid)),
        client.raster_output(access(s3, f"s3://{folder}/<tileName>.tif"), **output),
    )
    client.start_job(request)
    return request


@contextmanager
def faults(hub: LocalHub, **fields: Any) -> Iterator[None]:
    """Let faults hold while the context lasts."""
    set_faults(hub, Faults.model_validate(fields))
    try:
        yield
    finally:
        set_faults(hub, Faults())


def set_faults(hub: LocalHub, wanted: Faults) -> None:
    """Let these faults hold, by the admin route."""
    url, content = f"{hub.base_url}/admin/faults", wanted.model_dump(mode="json")
    requests.put(url, json=content, auth=operator(hub), timeout=10).raise_for_status()


def expire_tokens(hub: LocalHub) -> None:
    """Make all tokens that were given so far invalid, by the admin route."""
    requests.post(f"{hub.base_url}/admin/tokens/expire", auth=operator(hub), timeout=10).raise_for_status()


def operator(hub: LocalHub) -> tuple[str, str]:
    """Client id and secret, for HTTP Basic: the admin routes take them also while no tokens are given."""
    return hub.settings.client_id, hub.settings.client_secret.get_secret_value()


def set_balance(hub: LocalHub, balance_pu: float | None) -> None:
    """Let the account of the hub's client have so many processing units, by the admin route."""
    url = f"{hub.base_url}/admin/accounts/{hub.settings.client_id}"
    requests.put(url, json={"balance_pu": balance_pu}, auth=operator(hub), timeout=10).raise_for_status()


def balance(hub: LocalHub) -> float:
    """What the account of the hub's client has left."""
    accounts = session_of(hub).get(f"{hub.base_url}/admin/accounts", timeout=10).json()
    return float(next(a["balance_pu"] for a in accounts if a["client_id"] == hub.settings.client_id))


def task_of(hub: LocalHub, request: BatchProcessRequest) -> Any:
    """The API's task object, as it is sent."""
    return session_of(hub).get(f"{hub.base_url}/api/v2/batch/process/{request.request_id}", timeout=10).json()


def execution_rows(s3_files: s3fs.S3FileSystem, path: str) -> Rows | None:
    """The execution database at a path of a bucket; None when there is none, or none that can be read."""
    try:
        content = s3_files.cat_file(path)
    except FileNotFoundError:
        return None
    with closing(sqlite3.connect(":memory:")) as database:
        try:
            database.deserialize(content)
            rows = database.execute("SELECT name, status, error, delivered FROM features ORDER BY id").fetchall()
        except sqlite3.DatabaseError:
            return None
    return {name: (status, error, delivered) for name, status, error, delivered in rows}


def database_path(folder: str, request: BatchProcessRequest) -> str:
    """Where the documentation puts the execution database."""
    return f"{folder}/execution-{request.request_id}.sqlite"


def remembered(hub: LocalHub, request: BatchProcessRequest) -> dict[str, Feature]:
    """What localhub itself remembers of the tiles of a request."""
    store = Store(hub.settings.data_dir)
    try:
        return {feature.tile.name: feature for feature in store.features(request.request_id)}
    finally:
        store.close()


def has_credentials(hub: LocalHub, request: BatchProcessRequest) -> bool:
    """Whether localhub still keeps the access keys of a request."""
    return (hub.settings.data_dir / "credentials" / f"{request.request_id}.json").exists()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition; fail the test when it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
