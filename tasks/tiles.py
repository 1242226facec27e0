"""How far each tile is: from the execution database and the feature manifest that the service keeps in the bucket.

Batch v2 has no endpoint for tiles. It writes ``featureManifest-<id>.gpkg`` when a request has been analysed and
``execution-<id>.sqlite`` while it is processed (Sentinel Hub documentation, "Batch Processing API v2"). The database
may be missing, stale or in the middle of being replaced: then nothing is known yet, which is no error.
"""

import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import geopandas as gpd
import pyogrio
from botocore.exceptions import BotoCoreError
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import ServiceError, Unavailable
from tasks.grid import Tile
from tasks.service import Job, Service, connect, get_job
from tasks.storage import Storage, open_filesystem, service_files

UNREADABLE = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError)
NO_DATA = "No data"
"""The execution database's word for a tile without any scene."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a request will deliver, as its analysis found.

    Attributes:
        tiles: sorted by name.
        paths: of each tile by name: path in the bucket by output id, userdata included.
    """

    tiles: tuple[Tile, ...]
    paths: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class TileStatus:
    """What the execution database says of one tile.

    Attributes:
        status: PENDING, DONE or FATAL.
        error: the cause of FATAL, or "No data" with DONE.
        delivered: whether the files are in the bucket.
    """

    status: str
    error: str
    delivered: bool

    @property
    def ready(self) -> bool:
        """Whether the tile can be converted."""
        return self.status == "DONE" and self.delivered

    @property
    def empty(self) -> bool:
        """Whether the service found no scene for it."""
        return self.status == "DONE" and self.error == NO_DATA


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A request and its tiles at one moment.

    Attributes:
        job: the request.
        tiles: status by tile name; empty while nothing is known.
        problem: why something could not be asked now; empty when all was.
    """

    job: Job
    tiles: Mapping[str, TileStatus] = field(default_factory=dict)
    problem: str = ""


def poll_seconds(elapsed_seconds: float, longest: float) -> float:
    """When to ask again: after a tenth of the time waited so far, at least 2 s and at most ``longest``."""
    return min(max(2.0, elapsed_seconds / 10), longest)


def read_manifest(storage: Storage, request_id: str) -> Manifest:
    """Read what a request will deliver.

    Raises:
        ServiceError: the manifest is not at any of the documented places, or cannot be read.
    """
    name = f"featureManifest-{request_id}.gpkg"
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / name
        if not _download(storage, request_id, name, local):
            raise ServiceError(f"The manifest {name} is not in {storage.tiles_url}, though the request is analysed.")
        try:
            layers = [str(layer) for layer, _ in pyogrio.list_layers(local)]
            return _manifest([pyogrio.read_dataframe(local, layer=layer) for layer in layers])
        except (*UNREADABLE, AttributeError, TypeError, ValueError) as error:  # the rest: columns or a CRS are missing
            raise ServiceError(f"The manifest {name} in {storage.tiles_url} cannot be read: {error!r}.") from error


def read_statuses(storage: Storage, request_id: str) -> dict[str, TileStatus]:
    """Give the status of each tile; empty when the database is missing or cannot be believed now."""
    name = f"execution-{request_id}.sqlite"
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / name
        if not _download(storage, request_id, name, local):
            return {}
        try:
            with closing(sqlite3.connect(f"{local.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
                return _rows(database, local.stat().st_size)
        except sqlite3.DatabaseError:  # caught in the middle of an upload; the next poll sees it whole
            return {}


def take_snapshot(storage: Storage, service: Service, job: Job) -> Snapshot:
    """Ask once for the request and its tiles; a question without an answer is told, not raised.

    The request is asked first: when it says DONE, the database that is read after it is the final one.
    """
    try:
        job = replace(get_job(connect(service), job.id), found=job.found)
        return Snapshot(job, read_statuses(storage, job.id))
    except (Unavailable, OSError, BotoCoreError) as error:
        return Snapshot(job, problem=str(error) or repr(error))


def _manifest(layers: Iterable[gpd.GeoDataFrame]) -> Manifest:
    tiles: dict[str, Tile] = {}
    paths: dict[str, dict[str, str]] = {}
    for layer in layers:
        epsg = layer.crs.to_epsg()
        for row in layer.itertuples():
            bounds = row.geometry.bounds
            tiles[row.identifier] = Tile(row.identifier, epsg, bounds, int(row.width), int(row.height))
            paths.setdefault(row.identifier, {})[row.outputId] = row.path.removeprefix("s3://")
    return Manifest(tuple(tiles[name] for name in sorted(tiles)), paths)


def _rows(database: sqlite3.Connection, size: int) -> dict[str, TileStatus]:
    pages, page_size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    if pages * page_size != size:  # SQLite takes what is missing of a last page for zeros
        return {}
    if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
        return {}
    rows = database.execute("SELECT name, status, error, delivered FROM features")
    return {name: TileStatus(status, error or "", bool(delivered)) for name, status, error, delivered in rows}


def _download(storage: Storage, request_id: str, name: str, local: Path) -> bool:
    files, _ = open_filesystem(storage.tiles_url, storage)
    for path in service_files(storage.tiles_url, request_id, name):
        try:
            local.write_bytes(files.cat_file(path))
        except FileNotFoundError:
            continue
        return True
    return False


# ---- Prefect ----


@task(task_run_name="poll", cache_policy=NO_CACHE)
def poll(storage: Storage, service: Service, job: Job) -> Snapshot:
    """See :func:`take_snapshot`."""
    return take_snapshot(storage, service, job)
