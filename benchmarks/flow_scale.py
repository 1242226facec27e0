"""What the flow itself costs a tile, and how its memory grows: 1,000 and 10,000 tiles.

Everything is real but the tiles' size: a manifest and an execution database as the service writes them, COGs of 8 x 8
pixels, the flow's own pipeline with a Prefect server on SQLite, EOPatches written by eo-learn. The service answers
from a server on loopback: DONE, for each look. The same three files are every tile's: all tiles have one place, and
different names.

Orchestration is the whole CPU time, the Prefect server's included, less that of the same conversions in a loop.

    python benchmarks/flow_scale.py [--tiles 1000 10000]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import rasterio
import shapely
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.testing.utilities import prefect_test_harness

from flows.follow import Pipeline, follow
from flows.order import Order
from flows.parameters import LandCover
from localhub.featurefiles import execution_database, write_manifest
from localhub.seaweed import SeaweedFS
from localhub.store import Feature
from tasks.conversion import FeatureMapping, FeatureRule, TileFiles, convert_tile
from tasks.evalscript import Imagery, load_script
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState
from tasks.plan import TimeRange
from tasks.service import Job
from tasks.storage import open_filesystem, service_files
from tasks.tiles import read_manifest

REQUEST_ID = "00000000-0000-0000-0000-000000000001"
PIXELS = 8
MAX_MS, MAX_GROWTH_MB = 15.0, 100.0
SCRIPT = """//VERSION=3
function setup() { return {input: ["B04"], output: {id: "RED", bands: 1, sampleType: "UINT16"}}; }
function evaluatePixel(sample) { return [sample.B04]; }
"""
MAPPING = FeatureMapping(
    features=(FeatureRule(feature_type="data_timeless", name="RED", outputs=("RED",), dtype="uint16"),),
    quality_output=None,
)


class _Service(BaseHTTPRequestHandler):
    """Gives a token, and a request that is DONE."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        done = {
            "id": REQUEST_ID,
            "request": {},
            "domainAccountId": REQUEST_ID,
            "status": "DONE",
            "completionPercentage": 100,
            "costPU": 100,
        }
        token = {"access_token": "a.b.c", "expires_in": 3600, "token_type": "Bearer"}
        content = json.dumps(token if self.path.endswith("/token") else done).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer  # noqa: N815 - the base class's names

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@contextmanager
def service() -> Iterator[str]:
    """A server on loopback; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def deliver(count: int, parameters: LandCover) -> list[Tile]:
    """Put the request's files into the bucket: one COG for all tiles."""
    storage = parameters.storage
    files, root = open_filesystem(storage.tiles_url, storage)
    size = 10.0 * PIXELS
    tiles = [
        Tile(f"t{number}", 32633, (500000.0, 5e6, 500000 + size, 5e6 + size), PIXELS, PIXELS) for number in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder:
        cog = Path(folder) / "red.tif"
        with rasterio.open(
            cog, "w", driver="COG", width=PIXELS, height=PIXELS, count=1, dtype="uint16", crs=32633,
            transform=tiles[0].transform,
        ) as raster:  # fmt: skip
            raster.write(np.arange(PIXELS * PIXELS, dtype="uint16").reshape(1, PIXELS, PIXELS))
        files.pipe_file(f"{root}/red.tif", cog.read_bytes())
        manifest = Path(folder) / "manifest.gpkg"
        write_manifest(manifest, [(tile, {"RED": f"s3://{root}/red.tif"}) for tile in tiles], ())
        names = (f"featureManifest-{REQUEST_ID}.gpkg", f"execution-{REQUEST_ID}.sqlite")
        features = [Feature(number, tile, "DONE", delivered=True) for number, tile in enumerate(tiles)]
        for name, content in zip(names, (manifest.read_bytes(), execution_database(features)), strict=True):
            files.pipe_file(next(iter(service_files(storage.tiles_url, REQUEST_ID, name))), content)
    return tiles


def order_of(tiles: list[Tile], parameters: LandCover, script: Path) -> Order:
    """What the flow would make of the parameters."""
    from tasks.batch import Work  # noqa: PLC0415

    return Order(
        parameters=parameters,
        period=TimeRange(date(2019, 1, 1), date(2019, 1, 31), 10),
        slug="scale",
        area=shapely.box(0, 0, 1, 1),
        tiles=tuple(tiles),
        script=load_script(Imagery(evalscript=str(script)), date(2019, 1, 1), date(2019, 1, 31), 10),
        mapping=MAPPING,
        dates=None,
        work=Work("scale", "0" * 16, {}, {}, parameters.storage.tiles_url),
        reference=None,
    )


def cpu_seconds() -> float:
    """CPU time of this process and its children, except the S3 server."""
    me = psutil.Process()
    children = [child for child in me.children(recursive=True) if "weed" not in child.name()]
    return sum(sum(process.cpu_times()[:2]) for process in (me, *children))


def conversions(order: Order, tiles: list[Tile], folder: Path) -> float:
    """CPU seconds of the same conversions in a loop, per tile."""
    storage = order.parameters.storage
    source, root = open_filesystem(storage.tiles_url, storage)
    target, _ = open_filesystem(str(folder), storage)
    begin = cpu_seconds()
    for tile in tiles:
        convert_tile(
            tile, TileFiles({"RED": f"{root}/red.tif"}, None), source, target, str(folder / "p" / tile.name),
            mapping=MAPPING, options=order.parameters.patches, provenance=order.provenance(REQUEST_ID),
        )  # fmt: skip
    return (cpu_seconds() - begin) / len(tiles)


def measure(count: int) -> dict[str, float]:
    """Follow a job of so many tiles; CPU milliseconds a tile without and with the conversion, and memory."""
    logging_off()
    with (
        tempfile.TemporaryDirectory() as name,
        SeaweedFS(Path(name) / "s3", "key", "secret-key") as s3,
        service() as url,
    ):
        folder = Path(name)
        os.environ |= {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        (folder / "red.js").write_text(SCRIPT)
        parameters = LandCover.model_validate(
            {
                "service": {"base_url": url},
                "storage": {
                    "tiles_url": "s3://scale/tiles",
                    "destination": str(folder / "out"),
                    "endpoint_url": s3.endpoint_url,
                },
                "reference": None,
                "run": {"poll_seconds": 5, "tiles_at_once": 2},
            }
        )
        open_filesystem("s3://scale", parameters.storage)[0].mkdir("scale")
        tiles = deliver(count, parameters)
        order = order_of(tiles, parameters, folder / "red.js")
        per_tile = conversions(order, tiles[:500], folder)
        converted, spent = run_flow(order, tiles)
        assert converted == count
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "tiles": count,
        "orchestration_ms": (spent / count - per_tile) * 1000,
        "conversion_ms": per_tile * 1000,
        "peak_mb": peak_mb,
    }


def run_flow(order: Order, tiles: list[Tile]) -> tuple[int, float]:
    """Follow the job in a flow run; number of tiles converted, and CPU seconds."""

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=64))  # type: ignore[arg-type]
    def scale() -> int:
        records = [TileRecord(tile, TileState.PENDING) for tile in tiles]
        with Pipeline(order, None, records) as pipeline:
            job = Job(REQUEST_ID, "PROCESSING")
            follow(pipeline, job, read_manifest(order.parameters.storage, REQUEST_ID), lambda: None)
            pipeline.work_until_empty()
            return pipeline.converted

    with prefect_test_harness(server_startup_timeout=120):
        begin, spent = time.monotonic(), cpu_seconds()
        converted: int = scale()
        print(f"{len(tiles):,} tiles in {time.monotonic() - begin:.0f} s of wall time", file=sys.stderr)
        return converted, cpu_seconds() - spent


def logging_off() -> None:
    """One line a task run is not what is measured."""
    os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"


def main() -> None:
    """Measure each number of tiles in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    rows = []
    for count in arguments.tiles:
        answer = subprocess.run([sys.executable, __file__, "--one", str(count)], stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
    print("| tiles | orchestration, CPU ms a tile | conversion, CPU ms a tile | peak memory of the flow, MB |")
    print("|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['tiles']:,} | {row['orchestration_ms']:.1f} | {row['conversion_ms']:.1f} | {row['peak_mb']:.0f} |"
        )
    growth = rows[-1]["peak_mb"] - rows[0]["peak_mb"]
    print(
        f"\nGoals: under {MAX_MS:g} ms at the most tiles, memory within {MAX_GROWTH_MB:g} MB; grew by {growth:.0f} MB."
    )


if __name__ == "__main__":
    main()
