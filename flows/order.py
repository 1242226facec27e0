"""An order: the parameters, checked and resolved into what the stages need."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment
from pyogrio.errors import DataLayerError, DataSourceError
from shapely.geometry.base import BaseGeometry

from flows.parameters import LandCover, today
from flows.workers import check_workers
from tasks.batch import Work, check_access, check_delivery, process_request, upload_geopackage
from tasks.conversion import (
    FeatureMapping,
    Provenance,
    TileFiles,
    check_bands,
    check_frames,
    check_mapping,
    default_mapping,
    is_converted,
    land_cover_mapping,
    with_bands,
)
from tasks.errors import EopatchFlowError, InvalidInput, Unavailable
from tasks.evalscript import USERDATA, Imagery, Script, load_script, output_dates
from tasks.grid import Tile
from tasks.ledger import TileRecord, TileState, fingerprint, read_ledger
from tasks.plan import (
    Tiling,
    TimeRange,
    area_geometry,
    check_archive,
    checked_tiling,
    geopackage_bytes,
    plan_tiles,
    slug,
    survey,
)
from tasks.pricing import batch_price_pu
from tasks.reference import (
    PreparedReference,
    ReferenceSource,
    check_reference,
    check_units,
    is_labelled,
    prepare_reference,
    staged,
)
from tasks.scratch import scratch_folder
from tasks.service import Service
from tasks.storage import Storage, check_writable, is_loopback, open_filesystem, read_file, s3_keys

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for, resolved.

    Attributes:
        parameters: as given.
        period: the days that are meant.
        slug: names the folder of results and the artifacts.
        area: longitude and latitude; None for all tiles of a GeoPackage.
        tiles: planned by the tiling rule; the manifest of the request is binding.
        script: the evalscript as it will be sent.
        mapping: from its outputs to features.
        dates: of the built-in script, UTC; None for an own one, whose userdata.json tells them.
        work: what the service is asked for.
        reference: identity of the reference polygons; None without.
    """

    parameters: LandCover
    period: TimeRange
    slug: str
    area: BaseGeometry | None
    tiles: tuple[Tile, ...]
    script: Script
    mapping: FeatureMapping
    dates: tuple[datetime, ...] | None
    work: Work
    reference: ReferenceSource | None

    @property
    def title(self) -> str:
        """For people: area and days."""
        return f"{self.parameters.area.name}, {self.period.start} to {self.period.end}"

    @property
    def goal(self) -> TileState:
        """The state in which a tile is complete."""
        return TileState.CONVERTED if self.reference is None else TileState.LABELLED

    @property
    def folder(self) -> str:
        """Where the results go: a local folder or an S3 prefix."""
        return f"{self.parameters.storage.destination}/{self.slug}"

    def patch_url(self, tile: Tile) -> str:
        """Where a tile's EOPatch goes."""
        return f"{self.folder}/eopatches/eopatch_{tile.name}"

    def files(self, paths: Mapping[str, str]) -> TileFiles:
        """What a conversion reads of a tile, from its paths in the bucket by output id; empty for "No data"."""
        outputs = {output: path for output, path in paths.items() if output != USERDATA}
        return TileFiles(outputs, paths.get(USERDATA), self.dates)

    def provenance(self, request_id: str) -> Provenance:
        """What an EOPatch's marker says of its origin."""
        return Provenance(request_id, self.work.fingerprint, hashlib.sha256(self.script.source.encode()).hexdigest())

    @property
    def fingerprint(self) -> str:
        """Identity of what is delivered and what is made of it; the ledger keeps it for tiles without data."""
        return fingerprint([self.work.fingerprint, self.mapping.sha256])

    def billed(self, record: TileRecord, samples: int | None) -> TileRecord:
        """Put a processed tile's samples into its record, and its bill by the published rule."""
        if samples is None:
            return record
        return replace(record, samples=samples, price_pu=batch_price_pu(record.tile, samples, self.script))


class Problems:
    """What checks find wrong, each with the parameter that it is about.

    Attributes:
        found: one line a problem.
        may_pass: whether all of them are of a service that could not answer now.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.may_pass = True

    def attempt(self, place: str, check: Callable[[], T]) -> Callable[[], T]:
        """Check, and give what the check gave, to be called for.

        After a problem, calling for it ends the check that needs it without a word: the problem has been told.
        """
        try:
            value = check()
        except _ToldAlreadyError:
            return _told_already
        except EopatchFlowError as error:
            text = str(error)
            self.may_pass &= isinstance(error, Unavailable)
            self.found.append(text if text.startswith(place) else f"{place}: {text}")
            return _told_already
        return lambda: value


class _ToldAlreadyError(Exception):
    """What is needed here could not be worked out, and the reason has been told."""


def _told_already() -> NoReturn:
    raise _ToldAlreadyError


def prepare(parameters: LandCover, *, with_service: bool = False) -> Order:
    """Check the parameters against files, buckets and grids, and resolve them. Nothing is created or bought.

    Args:
        parameters: as given.
        with_service: whether to ask the service too if it is needed: its answer and the credentials for it.

    Raises:
        InvalidInput: all problems that were found, one a line, each with its parameter.
        Unavailable: there is no other than that the service could not answer.
    """
    problems = Problems()
    keys = problems.attempt("storage.credentials_block", lambda: s3_keys(parameters.storage))
    order = _resolved(parameters, keys, problems)
    if with_service:
        _check_others(problems, parameters, keys, None if problems.found else survey_order(order()))
    if problems.found:
        raise (Unavailable if problems.may_pass else InvalidInput)("\n".join(problems.found))
    return order()


def _resolved(parameters: LandCover, keys: Callable[[], object], problems: Problems) -> Callable[[], Order]:
    """Work out each part of the order from the parts that it needs; a problem hides no other."""
    attempt, storage, period = problems.attempt, parameters.storage, parameters.period.on(today())
    attempt("period", lambda: check_archive(period, today()))
    area = attempt("area", lambda: _area(parameters, keys))
    tiling = attempt("tiling", lambda: checked_tiling(parameters.tiling))
    tiles = attempt("area", lambda: tuple(plan_tiles(tiling(), area())))
    script = attempt("imagery.evalscript", lambda: _script(parameters.imagery, period))
    mapping = attempt("features", lambda: _mapping(parameters, script()))
    work = attempt("tiling", lambda: _work(parameters, period, area(), tiling(), script()))
    reference = attempt("reference", lambda: _reference(parameters, keys, tiles))
    attempt("features", lambda: _check_labels(mapping(), reference()))
    attempt("patches.file_format", lambda: check_frames(mapping(), tiles(), parameters.patches.file_format))
    attempt("storage.tiles_url", lambda: _check_place(storage.tiles_url, "the delivery", storage, keys))
    attempt("storage.destination", lambda: _check_lasting(storage.destination))
    attempt("storage.destination", lambda: _check_place(storage.destination, "the destination", storage, keys))
    attempt("storage.endpoint_url", lambda: _check_endpoint(parameters))
    attempt("imagery.cloud_mask", lambda: _check_mask(parameters))
    attempt("storage.iam_role_arn", lambda: _check_role(parameters))
    return attempt(
        "",
        lambda: Order(
            parameters=parameters,
            period=period,
            slug=slug(parameters.area, period),
            area=area(),
            tiles=tiles(),
            script=script(),
            mapping=mapping(),
            dates=_dates(period) if script().built_in else None,
            work=work(),
            reference=reference(),
        ),
    )


def _check_others(
    problems: Problems, parameters: LandCover, keys: Callable[[], object], records: Sequence[TileRecord] | None
) -> None:
    """Check the service and a cluster, where the tiles need them; None: it is not known."""
    states = {TileState.PENDING} if records is None else {record.state for record in records}
    if TileState.PENDING in states:
        problems.attempt("service", lambda: check_access(parameters.service))
        problems.attempt("storage", lambda: _check_keys(parameters.storage, keys))
    if states & {TileState.PENDING, TileState.CONVERTED}:
        problems.attempt("run.dask_address", lambda: check_workers(parameters.run, parameters.storage))


def survey_order(order: Order) -> list[TileRecord]:
    """Look at what exists at the destination: one record a planned tile."""
    files, _ = open_filesystem(order.folder, order.parameters.storage)
    file_format = order.parameters.patches.file_format
    provenance = order.provenance(request_id="")

    def converted(tile: Tile) -> bool:
        return bool(is_converted(files, _path(order, tile), tile.name, order.mapping, file_format, provenance))

    def labelled(tile: Tile) -> bool:
        return order.reference is None or bool(is_labelled(files, _path(order, tile), order.reference, file_format))

    empty = {} if order.parameters.patches.keep_empty else _known_empty(order)
    records = survey([tile for tile in order.tiles if tile.name not in empty], converted, labelled)
    return sorted([*records, *empty.values()], key=lambda record: record.tile.name)


def earlier_records(order: Order) -> dict[str, TileRecord]:
    """What the ledger of earlier runs tells, by tile name; nothing when there is none, or it is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "ledger.gpkg"
        try:
            local.write_bytes(read_file(f"{order.folder}/ledger.gpkg", order.parameters.storage))
            return {record.tile.name: record for record in read_ledger(local)}
        except FileNotFoundError:
            return {}
        except (DataSourceError, DataLayerError, KeyError):  # damaged: it is written anew from the data
            return {}


def deliver_tiles_file(order: Order) -> None:
    """Upload the GeoPackage with tiles, when the order has one, to where the service reads it."""
    tiling, storage = order.parameters.tiling, order.parameters.storage
    if tiling.geopackage is not None:
        content = geopackage_bytes(tiling.geopackage)
        upload_geopackage(content, hashlib.sha256(content).hexdigest(), storage)


@contextmanager
def prepared_reference(order: Order, records: Iterable[TileRecord]) -> Iterator[PreparedReference | None]:
    """Prepare polygons as :func:`local_reference`; for workers on other machines they are put beside the delivery.

    Raises:
        InvalidInput: see :func:`local_reference`.
    """
    with local_reference(order, records) as prepared:
        elsewhere = order.parameters.run.tiles_on == "dask"
        yield staged(prepared, order.parameters.storage) if prepared is not None and elsewhere else prepared


@contextmanager
def local_reference(order: Order, records: Iterable[TileRecord]) -> Iterator[PreparedReference | None]:
    """Prepare the reference polygons in a temporary folder; None when there are none, or no tile needs them.

    Raises:
        InvalidInput: the file cannot be read, has no CRS, unknown columns or classes, or nothing for any of the tiles.
    """
    tiles = [record.tile for record in records if record.state is not TileState.LABELLED]
    reference, storage = order.parameters.reference, order.parameters.storage
    if reference is None or not tiles:
        yield None
        return
    with scratch_folder() as folder:
        prepared = prepare_reference(reference, storage, tiles, folder)
        if prepared.findings.polygons == 0 and len(tiles) == len(order.tiles):
            files = ", ".join(one.title for one in reference.inputs)
            raise InvalidInput(
                f"reference: {files}: no polygon with a class touches any of the {len(tiles):,} tiles; check its "
                "coordinate reference system and the order of its coordinates. Without labels: reference: null."
            )
        yield prepared


def _path(order: Order, tile: Tile) -> str:
    return open_filesystem(order.patch_url(tile), order.parameters.storage)[1]


def _known_empty(order: Order) -> dict[str, TileRecord]:
    """Tiles of this order that an earlier run found to have no data: there is no EOPatch that could tell."""
    names = {tile.name for tile in order.tiles}
    return {
        name: record
        for name, record in earlier_records(order).items()
        if name in names and record.state is TileState.NO_DATA and record.fingerprint == order.fingerprint
    }


def _area(parameters: LandCover, keys: Callable[[], object]) -> BaseGeometry | None:
    file, storage = parameters.area.file, parameters.storage
    if file is None or not file.startswith("s3://"):
        return area_geometry(parameters.area)
    keys()
    files, path = open_filesystem(file, storage)
    with scratch_folder() as folder:
        local = str(folder / Path(path).name)
        try:
            files.get_file(path, local)
        except (OSError, BotoCoreError) as error:
            raise InvalidInput(f"The area file {file} cannot be reached: {error}. Check path and rights.") from error
        return area_geometry(parameters.area, local)


def _script(imagery: Imagery, period: TimeRange) -> Script:
    return load_script(imagery, period.start, period.end, period.step_days)


def _mapping(parameters: LandCover, script: Script) -> FeatureMapping:
    imagery = parameters.imagery
    if parameters.features is not None:
        mapping = parameters.features
    elif script.built_in:
        mapping = land_cover_mapping(imagery.bands, imagery.indices, parameters.patches.band_dtype)
    else:
        mapping = default_mapping(script.outputs, temporal=script.gives_dates, bands_per_scene=script.bands_per_scene)
    check_mapping(mapping, [output for output, _, _ in script.outputs])
    check_bands(mapping, script.outputs, script.bands_per_scene)
    mapping = with_bands(mapping, script.outputs)
    if mapping.temporal and not (script.built_in or script.gives_dates):
        raise InvalidInput(
            f"The feature mapping has features with dates, but the evalscript {imagery.evalscript} has no "
            "updateOutputMetadata to tell them (as 'timestamps'); add it, or map the outputs to timeless features and "
            "leave quality_output empty."
        )
    return mapping


def _check_endpoint(parameters: LandCover) -> None:
    service, endpoint = parameters.service.base_url, parameters.storage.endpoint_url
    if is_loopback(endpoint) and not is_loopback(service):
        raise InvalidInput(
            f"{endpoint} is on this machine, where {service} cannot deliver; name the bucket's endpoint, or null for "
            "AWS."
        )


def _check_labels(mapping: FeatureMapping, reference: ReferenceSource | None) -> None:
    taken = [
        rule.name for rule in mapping.features if (rule.feature_type, rule.name.upper()) == ("mask_timeless", "LULC")
    ]
    if taken and reference is not None:
        raise InvalidInput(
            f"The feature mapping makes mask_timeless/{taken[0]}, which the labels of the reference polygons would "
            "replace; name it otherwise, or do without labels: reference: null."
        )


def _work(parameters: LandCover, period: TimeRange, area: BaseGeometry | None, tiling: Tiling, script: Script) -> Work:
    imagery, storage = parameters.imagery, parameters.storage
    request = process_request(area, imagery.collection, period.start, period.end, imagery.max_cloud_coverage, script)
    if tiling.geopackage is None:
        tiles_input = {"type": "tiling-grid", "id": tiling.grid, "resolution": tiling.resolution_m}
    else:
        digest = hashlib.sha256(geopackage_bytes(tiling.geopackage)).hexdigest()
        tiles_input = {"url": f"{storage.tiles_url}/grids/{digest}.gpkg"}
    work = Work(parameters.area.name, "", request, tiles_input, storage.tiles_url)
    return replace(work, fingerprint=fingerprint([request, tiles_input, storage.tiles_url]))


def _reference(
    parameters: LandCover, keys: Callable[[], object], tiles: Callable[[], tuple[Tile, ...]]
) -> ReferenceSource | None:
    reference, storage = parameters.reference, parameters.storage
    if reference is None:
        return None
    if any(one.file.startswith("s3://") for one in reference.inputs):
        keys()
    try:
        source = check_reference(reference, storage)
    except (OSError, BotoCoreError) as error:
        files = ", ".join(one.title for one in reference.inputs)
        where = f" at {storage.endpoint_url or 'AWS'}" if "s3://" in files else ""
        raise InvalidInput(
            f"{files}{where} cannot be reached: {error}. Check that the server runs, the path, and the "
            "rights. Without labels: reference: null."
        ) from error
    check_units(reference, tiles())
    return source


def _check_place(url: str, what: str, storage: Storage, keys: Callable[[], object]) -> None:
    if url.startswith("s3://"):
        keys()
    check_writable(url, storage, what)


def _check_keys(storage: Storage, keys: Callable[[], object]) -> None:
    keys()
    check_delivery(storage)


def _check_lasting(destination: str) -> None:
    """A worker runs in a temporary folder: what is written to a relative path there is gone with it."""
    if deployment.id and not destination.startswith(("s3://", "/", "~")):
        raise InvalidInput(
            f"storage.destination '{destination}' is relative to the worker's temporary folder and would be lost with "
            "it; give an absolute path or an S3 prefix."
        )


def _check_mask(parameters: LandCover) -> None:
    """Copernicus Data Space has no s2cloudless."""
    imagery, host = parameters.imagery, _data_space(parameters.service)
    if host and imagery.evalscript is None and imagery.cloud_mask != "scl":
        raise InvalidInput(
            f"Cloud mask '{imagery.cloud_mask}' does not exist at {host}; choose imagery.cloud_mask 'scl' and "
            "imagery.collection 'sentinel-2-l2a'."
        )


def _check_role(parameters: LandCover) -> None:
    """Copernicus Data Space does not deliver by a role."""
    host = _data_space(parameters.service)
    if host and parameters.storage.iam_role_arn:
        raise InvalidInput(f"{host} does not deliver by a role; leave storage.iam_role_arn empty and give S3 keys.")


def _data_space(service: Service) -> str:
    """The host, if it is Copernicus Data Space's."""
    host = urlsplit(service.base_url).hostname or ""
    return host if host.endswith("dataspace.copernicus.eu") else ""


def _dates(period: TimeRange) -> tuple[datetime, ...]:
    days = output_dates(period.start, period.end, period.step_days)
    return tuple(datetime.combine(day, time(), tzinfo=UTC) for day in days)


# ---- Prefect ----


@task(task_run_name="validate {parameters.area.name}", cache_policy=NO_CACHE)
def validate(parameters: LandCover) -> Order:
    """See :func:`prepare`."""
    return prepare(parameters, with_service=True)


@task(task_run_name="survey {order.title}", cache_policy=NO_CACHE)
def survey_destination(order: Order) -> list[TileRecord]:
    """See :func:`survey_order`."""
    return survey_order(order)
