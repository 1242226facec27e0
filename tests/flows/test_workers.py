"""Tiles on processes and on a Dask cluster: the same results, and a worker that dies costs a repetition, not a run."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
import s3fs
from eolearn.core import EOPatch
from prefect import flow
from prefect.context import serialize_context

from flows.conclusion import Summary
from flows.order import prepare
from flows.parameters import LandCover, parse_config
from localhub.seaweed import SeaweedFS
from tasks.conversion import TileFiles, convert
from tasks.errors import InvalidInput, Unavailable
from tests.flows.dask_cluster import Cluster, dask_cluster
from tests.flows.test_land_cover import load, requests_of, run, states

pytestmark = pytest.mark.usefixtures("prefect_server")

TILES = ("t0", "t1", "t2", "t3")
NOWHERE = "tcp://127.0.0.1:9"


@pytest.fixture
def cluster(s3: SeaweedFS, tmp_path: Path) -> Iterator[Cluster]:
    """Two workers, which have the keys of S3 in their environment."""
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    with dask_cluster(tmp_path / "dask", 2, **keys) as running:
        yield running


def test_threads_processes_and_a_cluster_make_the_same_eopatches_and_the_same_ledger(
    parameters: LandCover, cluster: Cluster, s3_files: s3fs.S3FileSystem, tmp_path: Path
):
    summaries: dict[str, tuple[Summary, LandCover]] = {}
    for where in ("threads", "processes", "dask"):
        storage = parameters.storage.model_copy(update={"destination": str(tmp_path / where)})
        there = worked(parameters.model_copy(update={"storage": storage}), where, cluster)
        summaries[where] = run(there), there
    first, there = summaries.pop("threads")
    assert states(first) == dict.fromkeys(TILES, "labelled")
    for summary, elsewhere in summaries.values():
        assert (summary.converted, summary.labelled, figures(summary)) == (4, 4, figures(first))
        for name in TILES:
            assert without_origin(load(elsewhere, name)) == without_origin(load(there, name))
    staged = s3_files.glob(f"{parameters.storage.tiles_url.removeprefix('s3://')}/staged/*/*")
    names = ["polygons-32633.arrow", "rows-32633.npy", "tiles-32633.npy"]
    assert [path.rsplit("/", 1)[1] for path in staged] == names


@pytest.mark.parametrize("where", ["processes", "dask"])
def test_a_worker_that_is_killed_in_the_middle_of_a_tile_costs_a_repetition_and_not_a_run(
    where: str, parameters: LandCover, request: pytest.FixtureRequest
):
    cluster = request.getfixturevalue("cluster") if where == "dask" else None
    daily = parameters.model_copy(update={"period": parameters.period.model_copy(update={"step_days": 1})})
    with killing(processes_of(cluster), ".eopatch_", times=1) as killed:
        summary = run(worked(daily, where, cluster))
    assert len(killed) == 1
    assert states(summary) == dict.fromkeys(TILES, "labelled")
    assert (summary.converted, summary.labelled) == (4, 4)
    assert not list(Path(summary.folder).glob(".eopatch_*"))


def test_a_tile_that_kills_its_process_each_time_costs_only_itself(parameters: LandCover):
    limits = parameters.limits.model_copy(update={"min_success": 0.75})
    period = parameters.period.model_copy(update={"step_days": 1})
    daily = parameters.model_copy(update={"period": period, "limits": limits})
    with killing(processes_of(None), ".eopatch_t2.", times=99) as killed:
        summary = run(worked(daily, "processes"))
    assert len(killed) == 2
    assert states(summary) == dict.fromkeys(("t0", "t1", "t3"), "labelled") | {"t2": "failed"}
    (reason,) = (record.reason for record in summary.records if record.tile.name == "t2")
    assert "died twice, the second time with no other tile at work" in reason
    assert run(worked(daily, "processes")).converted == 1


def test_a_cluster_that_is_lost_ends_the_run_and_the_next_run_goes_on(parameters: LandCover, cluster: Cluster):
    def lose(_pid: int) -> None:
        for process in (cluster.scheduler, *cluster.workers):
            process.kill()

    period = parameters.period.model_copy(update={"step_days": 1})
    daily = parameters.model_copy(update={"period": period})
    with (
        killing(processes_of(cluster), ".eopatch_", times=1, kill=lose),
        pytest.raises(
            Unavailable, match=r"The Dask cluster at tcp://.* was lost: .*run again when the cluster is there"
        ),
    ):
        run(worked(daily, "dask", cluster))
    summary = run(daily)
    assert (states(summary), summary.bought) == (dict.fromkeys(TILES, "labelled"), False)


def test_a_scheduler_that_does_not_answer_is_told_before_anything_is_bought(parameters: LandCover):
    with pytest.raises(InvalidInput, match=rf"run.dask_address: The Dask scheduler {NOWHERE} does not answer"):
        run(with_run(parameters, tiles_on="dask", dask_address=NOWHERE))
    assert requests_of(parameters) == []


def test_a_missing_package_is_told_before_anything_is_bought(parameters: LandCover, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prefect_dask", None)  # as where it is not installed
    with pytest.raises(InvalidInput, match=r"prefect-dask is not installed; pip install 'eopatch-flow\[dask\]'"):
        run(with_run(parameters, tiles_on="dask", dask_address=NOWHERE))
    assert requests_of(parameters) == []


def test_workers_that_cannot_reach_the_storage_are_told_before_anything_is_bought(
    parameters: LandCover, tmp_path: Path
):
    wrong = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    with dask_cluster(tmp_path / "dask", 1, **wrong) as cluster:
        with pytest.raises(InvalidInput, match=r"1 of 1 Dask workers cannot work on tiles.*credentials .* are wrong"):
            run(worked(parameters, "dask", cluster))
        assert requests_of(parameters) == []


def test_a_cluster_is_not_asked_for_when_nothing_is_left_to_do(parameters: LandCover):
    run(parameters)
    summary = run(with_run(parameters, tiles_on="dask", dask_address=NOWHERE))
    assert (summary.bought, summary.converted) == (False, 0)


def test_the_message_of_a_tile_is_small_and_has_no_secret(parameters: LandCover, s3: SeaweedFS):
    order = prepare(parameters)

    @flow
    def message() -> bytes:
        delivered = TileFiles({output: f"bucket/tiles/{output}.tif" for output in "ABCDEFGHIJK"}, None, order.dates)
        arguments: dict[str, Any] = {
            "tile": order.tiles[0], "delivered": delivered, "storage": parameters.storage, "patch_url": order.folder,
            "mapping": order.mapping, "options": parameters.patches, "provenance": order.provenance("id"),
        }  # fmt: skip
        return bytes(cloudpickle.dumps((convert, arguments, serialize_context())))

    sent = message()
    assert len(sent) < 50_000
    assert s3.secret_key.encode() not in sent


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"tiles_on": "dask"}, "tiles_on is dask and dask_address is empty"),
        ({"dask_address": NOWHERE}, "tiles_on is threads and dask_address is tcp://127.0.0.1:9"),
        ({"tiles_on": "dask", "dask_address": "here"}, "String should match pattern"),
        ({"tiles_at_once": 65}, "threads are at most 64"),
    ],
)
def test_where_tiles_are_worked_on_has_to_fit_together(values: dict[str, Any], problem: str):
    with pytest.raises(InvalidInput, match=problem):
        parse_config({"run": values}, "test")


def worked(parameters: LandCover, where: str, cluster: Cluster | None = None) -> LandCover:
    address = cluster.address if cluster and where == "dask" else None
    return with_run(parameters, tiles_on=where, dask_address=address)


def with_run(parameters: LandCover, **changes: Any) -> LandCover:
    return parameters.model_copy(update={"run": parameters.run.model_copy(update=changes)})


def figures(summary: Summary) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in asdict(record).items() if name not in {"seconds", "bytes_written"}}
        for record in summary.records
    ]


def without_origin(patch: EOPatch) -> EOPatch:
    """Without the markers: they tell sizes of files, and a GeoPackage has the time of its making in it."""
    del patch.meta_info["BATCH"], patch.meta_info["REFERENCE"]
    return patch


def processes_of(cluster: Cluster | None) -> Callable[[], Iterable[int]]:
    """Those that work on tiles: of the cluster, or else of this process."""
    if cluster is not None:
        return lambda: [worker.pid for worker in cluster.workers]
    return lambda: [child.pid for child in psutil.Process().children(recursive=True) if "spawn_main" in cmdline(child)]


def cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@contextmanager
def killing(
    pids: Callable[[], Iterable[int]], name: str, *, times: int, kill: Callable[[int], None] = kill_process
) -> Iterator[list[int]]:
    """Within the block kill each process of ``pids`` that is seen to have an EOPatch's staged file open."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and len(killed) < times:
            for pid in pids():
                if pid not in killed and writes(pid, name):
                    kill(pid)
                    killed.append(pid)
                    break
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()


def writes(pid: int, name: str) -> bool:
    try:
        return any(name in str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
