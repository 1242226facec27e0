"""How far each tile is: from the execution database and the feature manifest that the service keeps in the bucket.

Batch v2 has no endpoint for tiles. It writes ``featureManifest-<id>.gpkg`` when a request has been analysed and
``execution-<id>.sqlite`` while it is processed (Sentinel Hub documentation, "Batch Processing API v2"). The database
may be missing, stale or in the middle of being replaced: then nothing is known yet, which is no error.
"""

import math
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import geopandas as gpd
import pyogrio
from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem
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

    @property
    def rank(self) -> int:
        """How far it has come; what has once come further never goes back."""
        return 2 if self.ready or self.empty else int(self.status != "PENDING")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A request and its tiles at one moment.

    Attributes:
        job: the request.
        tiles: status by tile name; empty while nothing is known.
        problem: why something could not be asked now; empty when all was.
        retry_after_seconds: how long the service asks to be left alone.
    """

    job: Job
    tiles: Mapping[str, TileStatus] = field(default_factory=dict)
    problem: str = ""
    retry_after_seconds: float = 0.0


def poll_seconds(
    elapsed_seconds: float,
    longest: float,
    *,
    left_seconds: float = math.inf,
    failures: int = 0,
    retry_after: float = 0.0,
    jitter: float = 0.0,
) -> float:
    """When to ask again: after a tenth of the time waited so far, at least 2 s and at most ``longest``.

    Args:
        elapsed_seconds: time waited so far.
        longest: bound of the pause, seconds.
        left_seconds: when the last tile is expected, so that the end is not seen late.
        failures: questions in a row without an answer; each doubles the pause.
        retry_after: seconds before which the service does not want to be asked, whatever the bound.
        jitter: 0 to 1; shortens the pause by up to a fifth, so that runs that began together drift apart.
    """
    pause = min(max(2.0, min(elapsed_seconds / 10, left_seconds)) * 2.0 ** min(failures, 10), longest)
    return max(pause * (1 - jitter / 5), retry_after)


def left_seconds(elapsed_seconds: float, tiles: Mapping[str, TileStatus], total: int) -> float:
    """Time until the last of ``total`` tiles at the pace of those that have ended; infinite while none has."""
    ended = sum(status.rank > 0 for status in tiles.values())
    return elapsed_seconds * (total - ended) / ended if ended else math.inf


def merged(known: Mapping[str, TileStatus], copy: Mapping[str, TileStatus]) -> dict[str, TileStatus]:
    """Add what a copy of the execution database tells to what is known; a tile never goes back."""
    news = {name: status for name, status in copy.items() if name not in known or status.rank >= known[name].rank}
    return {**known, **news}


def is_current(job: Job, tiles: Mapping[str, TileStatus], total: int) -> bool:
    """Tell whether the tiles' statuses are as new as the request's: as many have ended as its percentage says.

    The percentage may be rounded to a whole number, so half of a per cent may be missing while it is below 100.
    """
    ended = sum(status.rank > 0 for status in tiles.values())
    rounding = 0.0 if job.percent >= 100 else 0.5
    return ended >= math.floor((job.percent - rounding) / 100 * total)


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
    """Give the status of each tile; empty when no copy of the database is there, or can be believed now.

    Copies at several of the documented places are read oldest first, and no tile goes back.
    """
    name = f"execution-{request_id}.sqlite"
    files, _ = open_filesystem(storage.tiles_url, storage)
    tiles: dict[str, TileStatus] = {}
    for path in _copies(files, service_files(storage.tiles_url, request_id, name)):
        tiles = merged(tiles, _read_copy(files, path))
    return tiles


def take_snapshot(storage: Storage, service: Service, job: Job) -> Snapshot:
    """Ask once for the request and its tiles; a question without an answer is told, not raised.

    The request is asked first: when it says DONE, the database that is read after it is the final one.
    """
    try:
        job = replace(get_job(connect(service), job.id), found=job.found)
        return Snapshot(job, read_statuses(storage, job.id))
    except Unavailable as error:
        return Snapshot(job, problem=str(error), retry_after_seconds=error.retry_after_seconds)
    except (OSError, BotoCoreError) as error:
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


def _copies(files: AbstractFileSystem, places: Iterable[str]) -> list[str]:
    """Paths of the files that exist, oldest first.

    S3 answers 403 for what is not there to whoever may not list; it is raised only when nothing is found.
    """
    found: list[tuple[str, str]] = []
    refusal: PermissionError | None = None
    for path in places:
        try:
            info = files.info(path, refresh=True)
        except FileNotFoundError:
            continue
        except PermissionError as error:
            refusal = error
            continue
        found.append((str(info.get("LastModified", "")), path))
    if refusal is not None and not found:
        raise refusal
    return [path for _, path in sorted(found)]


def _read_copy(files: AbstractFileSystem, path: str) -> dict[str, TileStatus]:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "execution.sqlite"
        try:
            local.write_bytes(files.cat_file(path))
            with closing(sqlite3.connect(f"{local.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
                return _rows(database, local.stat().st_size)
        except (FileNotFoundError, sqlite3.DatabaseError):  # in the middle of an upload; the next poll sees it whole
            return {}


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
    copies = _copies(files, service_files(storage.tiles_url, request_id, name))
    if copies:
        local.write_bytes(files.cat_file(copies[-1]))
    return bool(copies)


# ---- Prefect ----


@task(task_run_name="poll {job.id}", cache_policy=NO_CACHE)
def poll(storage: Storage, service: Service, job: Job) -> Snapshot:
    """See :func:`take_snapshot`."""
    return take_snapshot(storage, service, job)
