"""Beyond so many tiles one task run does several of them; a bad tile still costs only itself."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import s3fs

from flows import follow
from flows.parameters import LandCover
from tasks.eopatches import outcome_of
from tasks.errors import TileError
from tests.flows.test_land_cover import patches, run, states

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_bad_tile_of_a_chunk_costs_only_itself(
    parameters: LandCover, s3_files: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MAX_TASK_RUNS", 1)
    limits = parameters.limits.model_copy(update={"repair": False, "min_success": 0.75})
    one_by_one = parameters.run.model_copy(update={"tiles_at_once": 1})
    lenient = parameters.model_copy(update={"limits": limits, "run": one_by_one})
    summary = run(lenient)
    assert states(summary) == dict.fromkeys(("t0", "t1", "t2", "t3"), "labelled")
    assert summary.job is not None
    path = f"{parameters.storage.tiles_url.removeprefix('s3://')}/{summary.job.id}/t1/B08.tif"
    s3_files.pipe_file(path, s3_files.cat_file(path)[:2000])
    for marker in patches(parameters).glob("*/meta_info/BATCH.json.gz"):
        marker.unlink()
    summary = run(lenient)
    assert states(summary) == dict.fromkeys(("t0", "t2", "t3"), "labelled") | {"t1": "failed"}
    assert "B08.tif is not a readable GeoTIFF" in summary.records[1].reason
    assert (summary.converted, summary.labelled) == (3, 3)


def test_an_error_is_given_and_a_network_that_comes_back_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.eopatches.RETRY_DELAY_SECONDS", [0.01, 0.01])
    calls: list[int] = []

    def flaky(failures: int) -> int:
        calls.append(failures)
        if len(calls) <= failures:
            raise ConnectionError
        return len(calls)

    assert outcome_of(flaky, 2) == 3
    calls.clear()
    assert isinstance(outcome_of(flaky, 3), ConnectionError)
    assert isinstance(outcome_of((tmp_path / "missing").read_bytes), FileNotFoundError)


def test_an_error_does_not_keep_what_the_failed_work_had_in_memory(tmp_path: Path) -> None:
    numbers: list[weakref.ref[np.ndarray]] = []

    def decode() -> None:
        tile = np.zeros(10)
        numbers.append(weakref.ref(tile))
        (tmp_path / "missing").read_bytes()

    def convert() -> None:
        try:
            decode()
        except FileNotFoundError as error:
            raise TileError("The tile is not there.") from error

    error = outcome_of(convert)
    assert isinstance(error, TileError)
    assert [number() for number in numbers] == [None]
    assert error.__traceback__ is not None
