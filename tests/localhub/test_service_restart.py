"""A localhub that ends in the middle of a job goes on with it, and repeats no tile that is done."""

import time
from datetime import datetime
from pathlib import Path

import pytest
import s3fs
from sentinelhub import BatchProcessClient, BatchProcessRequest

from localhub.faults import DatabaseFault, Faults, TileFault
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub, ServerError
from localhub.settings import Settings
from tests.localhub.batch_requests import SLOW, access, client_of, process_request, wait_for
from tests.localhub.watching import (
    balance,
    database_path,
    execution_rows,
    has_credentials,
    start_tiles,
    until,
)


def delivered(s3_files: s3fs.S3FileSystem, bucket: str) -> dict[str, datetime]:
    """Each delivered tile and when it was written."""
    return {path: s3_files.modified(path) for path in s3_files.glob(f"{bucket}/o/*.tif")}


def wait_for_tiles(client: BatchProcessClient, request: BatchProcessRequest, tiles: int) -> None:
    """Wait until so many of six tiles are recorded as done."""
    while client.get_request(request).completion_percentage < 100 * tiles / 6 - 1:
        time.sleep(0.05)


def test_a_crash_and_a_stop_in_the_middle_of_a_job_lose_nothing_and_repeat_no_tile(
    hub_settings: Settings,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
    tmp_path: Path,
) -> None:
    settings = hub_settings.model_copy(update={"data_dir": tmp_path / "own", "workers": 1, "account_pu": 5000})
    hub = LocalHub(settings).start()
    client = client_of(hub)
    request = client.create(
        process_request(SLOW),
        client.geopackage_input(access(s3, six_features)),
        client.raster_output(access(s3, f"s3://{bucket}/o/<tileName>.tif")),
    )
    client.start_job(request)
    wait_for_tiles(client, request, 1)
    hub.kill()
    crashed = delivered(s3_files, bucket)

    hub.start()
    wait_for_tiles(client_of(hub), request, len(crashed) + 1)
    began = time.monotonic()
    hub.stop()
    assert time.monotonic() - began < 5
    stopped = delivered(s3_files, bucket)
    assert 0 < len(crashed) < len(stopped) < 6

    with hub:
        assert wait_for(client_of(hub), request).status.value == "DONE"
        assert not list((settings.data_dir / "scratch").iterdir())
        assert balance(hub) == 4900  # the minimum, once
    finished = delivered(s3_files, bucket)
    assert len(finished) == 6
    for before in (crashed, stopped):  # but for one tile that was delivered and not yet recorded
        assert sum(finished[path] != written for path, written in before.items()) <= 1


def test_what_a_job_owes_at_a_crash_is_brought_after_it(
    hub_settings: Settings,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    six_features: str,
    tmp_path: Path,
) -> None:
    late = (
        TileFault(kind="undelivered", tile="f1", seconds=6),
        TileFault(kind="undelivered", tile="f2", seconds=3600),
        TileFault(kind="undelivered", tile="f3"),
    )
    faulty = Faults(tiles=late, database=DatabaseFault(stale_seconds=3600))
    settings = hub_settings.model_copy(update={"data_dir": tmp_path / "own", "faults": faulty})
    hub = LocalHub(settings).start()
    folder = f"{bucket}/o"
    request = start_tiles(client_of(hub), s3, six_features, folder)
    wait_for(client_of(hub), request)
    hub.kill()
    kept = settings.data_dir / "kept" / request.request_id
    assert {path.name for path in kept.iterdir()} == {"2", "3"}
    (kept / "5").mkdir()  # as if the crash had come before a late tile was recorded
    assert not s3_files.exists(f"{folder}/f1.tif")
    path = database_path(folder, request)
    assert execution_rows(s3_files, path) is None

    with LocalHub(settings.model_copy(update={"faults": Faults()})) as hub:
        until(lambda: (execution_rows(s3_files, path) or {}).get("f1") == ("DONE", None, 1))
        assert s3_files.exists(f"{folder}/f1.tif")
        rows = execution_rows(s3_files, path) or {}
        assert {name for name, (_, _, delivered) in rows.items() if not delivered} == {"f2", "f3"}
        assert {path.name for path in kept.iterdir()} == {"3"}
        assert has_credentials(hub, request)


def test_a_port_that_is_taken_is_said_with_the_log(hub: LocalHub, tmp_path: Path) -> None:
    port = int(hub.base_url.rpartition(":")[2])
    taken = hub.settings.model_copy(update={"data_dir": tmp_path, "port": port})
    with pytest.raises(ServerError, match=f"did not start on 127.0.0.1:{port}(.|\n)*Address already in use"):
        LocalHub(taken).start()


def test_the_address_is_known_only_while_it_runs(hub_settings: Settings) -> None:
    with pytest.raises(ServerError, match=r"call start\(\) first"):
        _ = LocalHub(hub_settings).base_url
