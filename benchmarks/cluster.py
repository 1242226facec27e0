"""Conversion on a Dask cluster of 1 and of 2 workers: time, efficiency, and what each process costs a tile.

A real scheduler, workers in processes of their own with one core each, the flow's own pipeline with a Prefect server on
SQLite, SeaweedFS for deliveries and EOPatches. All of it shares this machine, whose cores the workers are pinned to:
what is not a worker takes time from them. The service answers from a server on loopback; all tiles have the same files.

    python benchmarks/cluster.py [--tiles 24]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import rasterio
from distributed import Client
from flow_scale import REQUEST_ID, logging_off, order_of, service
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from flows.follow import Pipeline, follow
from flows.order import Order
from flows.parameters import LandCover
from flows.workers import check_workers
from localhub.featurefiles import execution_database, write_manifest
from localhub.seaweed import SeaweedFS
from localhub.store import Feature
from tasks.conversion import FeatureMapping, FeatureRule
from tasks.evalscript import USERDATA
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState
from tasks.service import Job
from tasks.storage import open_filesystem, service_files
from tasks.tiles import read_manifest

PIXELS, DATES = 500, 25
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
OUTPUTS = (*BANDS, "QUALITY")
MAPPING = FeatureMapping(
    features=(FeatureRule(feature_type="data", name="BANDS", outputs=BANDS, scale=1e-4, no_data=65535),),
    quality_output="QUALITY",
)
SCRIPT = f"""//VERSION=3
function setup() {{ return {{input: {json.dumps(BANDS)}, output: [
  ...{json.dumps(BANDS)}.map(id => ({{id, bands: {DATES}, sampleType: "UINT16"}})),
  {{id: "QUALITY", bands: {DATES}, sampleType: "UINT8"}}]}}; }}
function evaluatePixel(sample) {{ return {{}}; }}
function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {{}}
"""


def raster(folder: Path, output: str) -> bytes:
    """A COG of a smooth landscape with noise, which compresses to about half, as real bands do."""
    random = np.random.default_rng(len(output))
    kind = "uint8" if output == "QUALITY" else "uint16"
    shape = (DATES, PIXELS, PIXELS)
    if output == "QUALITY":
        numbers = np.ones(shape, kind)
    else:
        ramp = np.add.outer(np.arange(PIXELS), np.arange(PIXELS))
        numbers = (1000 + ramp + random.integers(0, 200, shape)).astype(kind)
    path = folder / f"{output}.tif"
    with rasterio.open(
        path, "w", driver="COG", width=PIXELS, height=PIXELS, count=DATES, dtype=kind, crs=32633, compress="deflate",
        transform=rasterio.Affine(10, 0, 500000, 0, -10, 5e6 + 10 * PIXELS),
    ) as file:  # fmt: skip
        file.write(numbers)
    return path.read_bytes()


def deliver(count: int, parameters: LandCover, folder: Path) -> list[Tile]:
    """Put the request's files into the bucket: one set of COGs for all tiles."""
    storage = parameters.storage
    files, root = open_filesystem(storage.tiles_url, storage)
    files.mkdir("scale")
    size = 10.0 * PIXELS
    bounds = (500000.0, 5e6, 500000 + size, 5e6 + size)
    tiles = [Tile(f"t{number}", 32633, bounds, PIXELS, PIXELS) for number in range(count)]
    for output in OUTPUTS:
        files.pipe_file(f"{root}/{output}.tif", raster(folder, output))
    days = [f"2019-01-{day:02d}T00:00:00Z" for day in range(1, DATES + 1)]
    files.pipe_file(f"{root}/userdata.json", json.dumps({"timestamps": days}).encode())
    paths = {output: f"s3://{root}/{output}.tif" for output in OUTPUTS} | {USERDATA: f"s3://{root}/userdata.json"}
    write_manifest(folder / "manifest.gpkg", [(tile, paths) for tile in tiles], ())
    features = [Feature(number, tile, "DONE", delivered=True) for number, tile in enumerate(tiles)]
    names = (f"featureManifest-{REQUEST_ID}.gpkg", f"execution-{REQUEST_ID}.sqlite")
    contents = ((folder / "manifest.gpkg").read_bytes(), execution_database(features))
    for name, content in zip(names, contents, strict=True):
        files.pipe_file(next(iter(service_files(storage.tiles_url, REQUEST_ID, name))), content)
    return tiles


def asked_for(service_url: str, store: SeaweedFS, address: str, workers: int) -> LandCover:
    """Parameters of a run on the cluster."""
    places = {"tiles_url": "s3://scale/tiles", "destination": "s3://scale/out", "endpoint_url": store.endpoint_url}
    return LandCover.model_validate(
        {
            "service": {"base_url": service_url},
            "storage": places,
            "reference": None,
            "run": {"tiles_on": "dask", "dask_address": address, "tiles_at_once": 2 * workers},
        }
    )


def measure(workers: int, count: int) -> dict[str, float]:
    """Convert so many tiles on so many workers; seconds of wall time, and CPU seconds of each kind of process."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        store = running.enter_context(SeaweedFS(folder / "s3", "key", "secret-key"))
        os.environ |= {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
        scheduler, dask_workers, address = cluster(running, folder, workers)
        parameters = asked_for(running.enter_context(service()), store, address, workers)
        tiles = deliver(count, parameters, folder)
        (folder / "own.js").write_text(SCRIPT)
        order = replace(order_of(tiles, parameters, folder / "own.js"), mapping=MAPPING)
        groups = {"workers": dask_workers, "scheduler": [scheduler], "flow": [os.getpid()], "s3": seaweed()}
        running.enter_context(prefect_test_harness(server_startup_timeout=240))
        groups["Prefect server"] = others([pid for pids in groups.values() for pid in pids])
        converted, seconds, spent = convert_all(order, tiles, groups)
    assert converted == count
    return {"tiles": count, "seconds": seconds, **spent}


@flow(validate_parameters=False)
def convert_all(order: Order, tiles: list[Tile], groups: dict[str, list[int]]) -> tuple[int, float, dict[str, float]]:
    """Follow the job on the cluster; number of tiles converted, seconds, and CPU seconds by group of processes."""
    storage = order.parameters.storage
    check_workers(order.parameters.run, storage)  # the workers have imported all that they need, as in a run
    with Pipeline(order, None, [TileRecord(tile, TileState.PENDING) for tile in tiles]) as pipeline:
        before, begin = cpu(groups), time.monotonic()
        follow(pipeline, Job(REQUEST_ID, "PROCESSING"), read_manifest(storage, REQUEST_ID), lambda: None)
        pipeline.work_until_empty()
        seconds, after = time.monotonic() - begin, cpu(groups)
    return pipeline.converted, seconds, {name: after[name] - before[name] for name in groups}


def cluster(running: ExitStack, folder: Path, workers: int) -> tuple[int, list[int], str]:
    """Start a scheduler and workers, each worker on a core of its own; ids of their processes, and the address."""
    contact = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = ["--no-dashboard", "--scheduler-file", str(contact)]
    commands = [[*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *quiet]]
    commands += [[*dask, "worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(folder), *quiet]] * workers
    processes = []
    for number, command in enumerate(commands):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        running.callback(process.kill)
        if number:
            os.sched_setaffinity(process.pid, {(number - 1) % os.cpu_count()})  # type: ignore[operator]
        processes.append(process)
    while not contact.exists():
        time.sleep(0.2)
    with Client(scheduler_file=str(contact), timeout=120, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=240)
        return processes[0].pid, [process.pid for process in processes[1:]], client.scheduler.address


def seaweed() -> list[int]:
    """Processes of the S3 server."""
    return [child.pid for child in psutil.Process().children(recursive=True) if "weed" in child.name()]


def others(known: list[int]) -> list[int]:
    """Children that are none of those: the Prefect server's processes."""
    return [child.pid for child in psutil.Process().children(recursive=True) if child.pid not in known]


def cpu(groups: dict[str, list[int]]) -> dict[str, float]:
    """CPU seconds of each group of processes so far."""
    return {name: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) for name, pids in groups.items()}


def main() -> None:
    """Measure 1 and 2 workers in turns, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=24)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        logging_off()
        print(json.dumps(measure(arguments.one, arguments.tiles)))
        return
    rows = []
    for workers in (1, 2, 1, 2):
        command = [sys.executable, __file__, "--one", str(workers), "--tiles", str(arguments.tiles)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
    kinds = ("workers", "flow", "Prefect server", "scheduler", "s3")
    print(f"{arguments.tiles} tiles of {PIXELS} x {PIXELS} pixels, {DATES} dates, {len(BANDS)} bands")
    print("| workers | seconds | tiles a minute | CPU s a tile: " + " | ".join(kinds) + " |")
    print("|---|---|---|" + "---|" * len(kinds))
    for row, workers in zip(rows, (1, 2, 1, 2), strict=True):
        each = " | ".join(f"{row[kind] / row['tiles']:.3f}" for kind in kinds)
        print(f"| {workers} | {row['seconds']:.1f} | {60 * row['tiles'] / row['seconds']:.1f} | {each} |")
    for one, two in (rows[:2], rows[2:]):
        print(f"Efficiency of 2 workers: {one['seconds'] / two['seconds'] / 2:.0%}")


if __name__ == "__main__":
    main()
