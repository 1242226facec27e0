"""A repair: the tiles that a request failed to deliver, ordered once more as a GeoPackage.

Each feature has the tile's name, CRS, outline and size in pixels, so that what comes is, bit for bit, what should have
come (Sentinel Hub documentation, "Batch Processing API v2", GeoPackage input). The description of a repair names the
request that it repairs: later runs find it there and buy no other.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import pyogrio
import shapely
from prefect import task
from prefect.cache_policies import NO_CACHE
from sentinelhub import BatchProcessClient

from tasks.batch import Work, create_job, described_jobs, upload_geopackage
from tasks.grid import Tile
from tasks.ledger import fingerprint
from tasks.service import Job, Service, connect, patiently
from tasks.storage import Storage


def repair_work(work: Work, request_id: str, tiles: Sequence[Tile], number: int = 1) -> Work:
    """Give what the service is asked for so that it delivers some tiles of a request again.

    Args:
        work: what the request was for.
        request_id: of the request.
        tiles: what it failed to deliver.
        number: counts the repairs of the request.
    """
    identity = fingerprint([work.fingerprint, request_id, sorted(tile.name for tile in tiles), number])
    request = work.process_request
    return replace(
        work,
        name=f"{work.name}, {_mark(request_id)}",
        fingerprint=identity,
        process_request=request | {"input": request["input"] | {"bounds": {}}},
        tiles_input={"url": f"{work.tiles_url}/grids/{identity}.gpkg"},
    )


def tiles_geopackage(tiles: Iterable[Tile]) -> bytes:
    """Write tiles as a GeoPackage that the service takes: a table for each CRS."""
    by_crs: defaultdict[int, list[Tile]] = defaultdict(list)
    for tile in sorted(tiles, key=lambda tile: tile.name):
        by_crs[tile.epsg].append(tile)
    with tempfile.TemporaryDirectory(prefix="eopatch-flow-") as folder:
        path = Path(folder) / "tiles.gpkg"
        for epsg, members in sorted(by_crs.items()):
            _write_table(path, epsg, members)
        return path.read_bytes()


def with_outlines(tiles: Iterable[Tile], planned: Iterable[Tile]) -> list[Tile]:
    """Give tiles of a manifest the outlines that they were ordered with: a manifest tells only of the rasters."""
    known = {tile.name: tile for tile in planned}
    return [_with_outline(tile, known.get(tile.name)) for tile in tiles]


def find_repairs(client: BatchProcessClient, request_id: str) -> list[Job]:
    """Find the repairs of a request, oldest first, whatever became of them."""
    mark = f", {_mark(request_id)} ["
    return [job for description, job in reversed(described_jobs(client)) if mark in description]


def _mark(request_id: str) -> str:
    return f"repair of {request_id}"


def _with_outline(tile: Tile, planned: Tile | None) -> Tile:
    same = planned is not None and (planned.epsg, planned.bounds) == (tile.epsg, tile.bounds)
    return replace(tile, outline=planned.outline) if planned is not None and same else tile


def _write_table(path: Path, epsg: int, tiles: Sequence[Tile]) -> None:
    columns = {
        "id": range(1, len(tiles) + 1),
        "identifier": [tile.name for tile in tiles],
        "width": [tile.width for tile in tiles],
        "height": [tile.height for tile in tiles],
    }
    shapes = [tile.shape for tile in tiles]
    in_parts = any(isinstance(shape, shapely.MultiPolygon) for shape in shapes)
    pyogrio.write_dataframe(
        gpd.GeoDataFrame(columns, geometry=shapes, crs=epsg),
        path,
        layer=f"tiles_{epsg}",
        driver="GPKG",
        append=path.exists(),
        promote_to_multi=in_parts,
        geometry_type="MultiPolygon" if in_parts else "Polygon",
    )


# ---- Prefect ----


@task(task_run_name="find repairs", cache_policy=NO_CACHE)
def repairs(service: Service, job: Job) -> list[Job]:
    """See :func:`find_repairs`."""
    client = connect(service)
    return patiently(lambda: find_repairs(client, job.id))


@task(task_run_name="order a repair", cache_policy=NO_CACHE)
def order_repair(work: Work, content: bytes, storage: Storage, service: Service) -> Job:
    """Upload the GeoPackage and create the request; see :func:`tasks.batch.create_job`."""
    upload_geopackage(content, work.fingerprint, storage)
    return create_job(connect(service), work, storage)
