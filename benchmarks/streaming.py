"""What is gained by converting tiles while the job goes on: the flow against its job alone and its conversion alone.

Everything is real: localhub with scenes of its own, an S3 server, Prefect's server on SQLite, the built-in script,
labels. localhub ends one tile every few seconds. In each round, one after the other:

* job alone: from the creation of the request to its end, nobody converts;
* conversion alone: all tiles of that request are there; from the plan to the last label;
* flow: from its call to its return, with a request of its own, in a place of its own.

The goal for the flow is 1.15 times the longer one of the two, and one tile.

localhub computes on the same processors as the conversion, as no other service does: tiles are small, so that both have
time to spare.

    python benchmarks/streaming.py [--rounds 3]
"""

import argparse
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely
from common import machine, spread
from prefect.testing.utilities import prefect_test_harness
from pydantic import SecretStr

from flows.conclusion import Summary
from flows.land_cover import land_cover
from flows.order import deliver_tiles_file, prepare
from flows.parameters import LandCover
from flows.progress import Progress, listening
from localhub.faults import Faults
from localhub.sample import SampleInfo, build_sample
from localhub.sample.landscape import Extent
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tasks.batch import analyse_job, create_job, start_job
from tasks.ledger import TileState
from tasks.service import connect, get_job
from tasks.storage import open_filesystem

EXTENT = Extent(560000, 5142000, 15600)
RESOLUTION_M = 10.0
SHARE = 1.15
SIDE, PIXELS = 5, 60
"""So many tiles on a side of a square, and pixels on a side of a tile."""
TILES = SIDE**2
TILE_SECONDS = 4.0
"""localhub ends a tile so often."""
TILES_AT_ONCE = 2


@dataclass(frozen=True)
class Round:
    """Seconds of one round; those of `first` and `job_in_flow` count from the call of the flow."""

    job: float
    conversion: float
    flow: float
    first: float
    job_in_flow: float

    @property
    def bound(self) -> float:
        """What the flow may take."""
        longer = max(self.job, self.conversion)
        return SHARE * longer + longer / TILES


class Clock:
    """Notes when a stage of a run had its first and its last tile, seconds."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def hear(self, progress: Progress) -> None:
        """Note the time of a change."""
        if progress.done:
            self.first.setdefault(progress.stage, time.monotonic())
            self.last[progress.stage] = time.monotonic()


@contextmanager
def servers(folder: Path) -> Iterator[tuple[LocalHub, SeaweedFS, SampleInfo]]:
    """An S3 server, and a localhub that takes its time with tiles."""
    sample = build_sample(folder / "archive", extent=EXTENT, count=12)
    with SeaweedFS(folder / "s3", "key", "secret-key") as s3:
        os.environ |= {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        settings = Settings(
            data_dir=folder / "hub",
            archive=sample.folder,
            port=0,
            s3_endpoint_url=s3.endpoint_url,
            s3_access_key=s3.access_key,
            s3_secret_key=SecretStr(s3.secret_key),
            faults=Faults(tile_seconds=TILE_SECONDS),
        )
        with LocalHub(settings) as hub:
            yield hub, s3, sample


def write_tiles(path: Path, side: int) -> None:
    """Write the GeoPackage with tiles in a square."""
    size = PIXELS * RESOLUTION_M
    places = [(i, j) for j in range(side) for i in range(side)]
    west, north = EXTENT.west + 300, EXTENT.north - 300
    boxes = [shapely.box(west + size * i, north - size * (j + 1), west + size * (i + 1), north - size * j)
             for i, j in places]  # fmt: skip
    names = [f"t{number:02d}" for number in range(len(places))]
    columns = {"id": range(len(places)), "identifier": names, "resolution": [RESOLUTION_M] * len(places)}
    gpd.GeoDataFrame(columns, geometry=boxes, crs=32633).to_file(path, layer="tiles", engine="pyogrio")


def parameters(folder: Path, hub: LocalHub, s3: SeaweedFS, sample: SampleInfo, place: str) -> LandCover:
    """What is asked for; the request of each place is another one."""
    content: dict[str, Any] = {
        "area": {"name": "Streamed"},
        "period": {"start": "2019-01-01", "end": "2019-03-10", "step_days": 3},
        "tiling": {"geopackage": str(folder / "tiles.gpkg")},
        "service": {"base_url": hub.base_url},
        "storage": {
            "tiles_url": f"s3://streaming/{place}",
            "destination": str(folder / "out" / place),
            "endpoint_url": s3.endpoint_url,
        },
        "reference": {"file": str(sample.reference)},
        "run": {"tiles_at_once": TILES_AT_ONCE},
    }
    return LandCover.model_validate(content)


def job_alone(asked: LandCover) -> float:
    """Order the tiles and wait for the request's end; seconds."""
    order = prepare(asked)
    deliver_tiles_file(order)
    client, begin = connect(asked.service), time.monotonic()
    job = start_job(client, analyse_job(client, create_job(client, order.work, asked.storage)))
    while not job.ended:
        time.sleep(0.2)
        job = get_job(client, job.id)
    assert job.status == "DONE", job
    return time.monotonic() - begin


def run_flow(asked: LandCover) -> tuple[Summary, Clock]:
    """Run the flow; all tiles are labelled in the end."""
    clock = Clock()
    with listening(clock.hear):
        summary = land_cover(**{name: getattr(asked, name) for name in LandCover.model_fields})
    assert isinstance(summary, Summary)
    assert all(record.state is TileState.LABELLED for record in summary.records)
    return summary, clock


def ended_at(hub: LocalHub, request_id: str) -> float:
    """When a request was DONE by localhub's log, seconds since the epoch."""
    (line,) = re.findall(rf"^(\S+ \S+) INFO .*Job {request_id} DONE", hub.log_path.read_text(), re.MULTILINE)
    return datetime.strptime(line, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()


def measure(folder: Path, place: str, servers_: tuple[LocalHub, SeaweedFS, SampleInfo]) -> Round:
    """Take one round."""
    hub, s3, sample = servers_
    alone = parameters(folder, hub, s3, sample, f"{place}-alone")
    job = job_alone(alone)
    summary, clock = run_flow(alone)
    assert not summary.bought
    conversion = clock.last["Label"] - clock.first["Plan"]
    began, begin = time.time(), time.monotonic()
    summary, clock = run_flow(parameters(folder, hub, s3, sample, f"{place}-flow"))
    flow = time.monotonic() - begin
    assert summary.bought
    assert summary.job is not None
    return Round(job, conversion, flow, clock.first["Label"] - begin, ended_at(hub, summary.job.id) - began)


def rounds_of(count: int) -> list[Round]:
    """Take so many rounds, after a short one that nobody counts: first imports and connections take their time."""
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as running:
        folder = Path(name)
        write_tiles(folder / "tiles.gpkg", 1)
        first = parameters(folder, *running, "warm")
        open_filesystem("s3://streaming", first.storage)[0].mkdir("streaming")
        run_flow(first)
        write_tiles(folder / "tiles.gpkg", SIDE)
        return [measure(folder, f"round{number}", running) for number in range(count)]


def main() -> None:
    """Measure, and print a table: medians and ranges of seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
    logging.disable(logging.INFO)
    print(machine())
    print(f"{TILES} tiles of {PIXELS} x {PIXELS} pixels, one in {TILE_SECONDS:g} s; {TILES_AT_ONCE} converted at once")
    header = "job alone", "conversion alone", "flow", "bound", "flow / bound", "first EOPatch", "job's end"
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    with prefect_test_harness(server_startup_timeout=120):
        rounds = rounds_of(arguments.rounds)
    columns = (
        spread([one.job for one in rounds]),
        spread([one.conversion for one in rounds]),
        spread([one.flow for one in rounds]),
        spread([one.bound for one in rounds]),
        spread([one.flow / one.bound for one in rounds], 2),
        spread([one.first for one in rounds]),
        spread([one.job_in_flow for one in rounds]),
    )
    print(f"| {' | '.join(column.strip() for column in columns)} |")


if __name__ == "__main__":
    main()
