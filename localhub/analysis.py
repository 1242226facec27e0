"""The analysis of a request: check the script, select the features, look for existing files, write the manifest."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from localhub.archive import Archive, ArchiveError, ArchiveSource
from localhub.delivery import parse_s3_url
from localhub.engine import Evalscript, EvalscriptError, Setup
from localhub.errors import RequestFailed
from localhub.featurefiles import write_manifest
from localhub.objectstore import Access, Bucket
from localhub.payload import Bounds, CreateRequest, GeoPackageInput, RasterOutput, TilingGridInput, ZarrOutput
from localhub.render import check_bands, open_archive
from localhub.store import Feature
from localhub.worker import targets
from localhub.zarroutput.group import check_output, group_of
from tasks.grid import Tile, tiles_of_geopackage, tiles_of_grid
from tasks.grid.coordinates import LONLAT, area_to_lonlat, crs_of, transformed, transformer

_SLIVER = 1e-9  # share of a feature: an overlap that is smaller is a common edge


@dataclass(frozen=True, slots=True)
class AnalysisTask:
    """What the analysis needs to know about a job."""

    job_id: str
    request: CreateRequest
    access: Mapping[str, Access]
    """To the object stores, by place: `output`, and `features` for GeoPackage input."""
    archive: ArchiveSource
    scratch: Path


def analyse(task: AnalysisTask) -> list[Feature]:
    """Return the features to process, after the manifest has been uploaded.

    Raises:
        RequestFailed: the script, the area, the GeoPackage or the files at the target do not allow to go on.
        StoreError: the bucket cannot be read or written.
    """
    try:
        _check_script(task.request, open_archive(task.archive, task.job_id))
        with tempfile.TemporaryDirectory(dir=task.scratch) as folder:
            tiles, all_epsgs = _select(task, Path(folder))
            features = _features(task, tiles)
            _upload_manifest(task, tiles, all_epsgs, Path(folder))
    except (EvalscriptError, ArchiveError) as error:
        raise RequestFailed(str(error)) from error
    return features


def _check_script(request: CreateRequest, archive: Archive) -> None:
    with Evalscript(request.process_request.evalscript) as script:
        setup = script.setup
    check_bands(setup, request.process_request.input.data, archive)
    _check_outputs(setup, request)


def _check_outputs(setup: Setup, request: CreateRequest) -> None:
    outputs = {output.id: output for output in setup.outputs}
    cog = isinstance(request.output, RasterOutput) and request.output.cog_output
    for response in request.process_request.output.responses:
        if response.identifier == "userdata":
            continue
        if response.identifier not in outputs:
            raise RequestFailed(
                f"Invalid script! Response '{response.identifier}' is not an output of setup(); "
                f"it has [{', '.join(outputs)}]."
            )
        if cog and outputs[response.identifier].sample_type == "INT8":
            raise RequestFailed(f"Output '{response.identifier}' is INT8, which cogOutput does not allow.")
    for layout in request.arrays:
        check_output(outputs[layout.name], layout)


def _select(task: AnalysisTask, folder: Path) -> tuple[list[Tile], set[int]]:
    """Return the tiles to process, and the EPSG codes of all tiles of the input."""
    wanted = task.request.input
    bounds = task.request.process_request.input.bounds
    try:
        if isinstance(wanted, TilingGridInput):
            tiles = _tiles_of_grid(wanted, bounds)
            epsgs = {tile.epsg for tile in tiles}
        else:
            every_tile = _tiles_of_geopackage(wanted, task.access["features"], folder)
            epsgs = {tile.epsg for tile in every_tile}
            tiles = within_bounds(every_tile, bounds)
    except ValueError as error:
        raise RequestFailed(str(error)) from error
    if not tiles:
        raise RequestFailed("The area of the request meets no feature of the input; choose another area.")
    return tiles, epsgs


def _tiles_of_grid(wanted: TilingGridInput, bounds: Bounds) -> list[Tile]:
    area = bounds.area
    if area is None:
        raise ValueError("Tiling-grid input needs a bbox or a geometry in processRequest.input.bounds.")
    tiles = tiles_of_grid(area, bounds.epsg, wanted.id, wanted.resolution)
    return [buffered(tile, wanted.buffer_x, wanted.buffer_y) for tile in tiles]


def buffered(tile: Tile, columns: int, rows: int) -> Tile:
    """Return `tile` with `columns` more pixels on its left and right, and `rows` more above and below."""
    x_margin, y_margin = columns * tile.resolution[0], rows * tile.resolution[1]
    min_x, min_y, max_x, max_y = tile.bounds
    bounds = (min_x - x_margin, min_y - y_margin, max_x + x_margin, max_y + y_margin)
    return replace(tile, bounds=bounds, width=tile.width + 2 * columns, height=tile.height + 2 * rows)


def _tiles_of_geopackage(wanted: GeoPackageInput, access: Access, folder: Path) -> list[Tile]:
    bucket, key = parse_s3_url(wanted.features.s3.url)
    path = folder / "features.gpkg"
    path.write_bytes(Bucket(bucket, access).read(key))
    return tiles_of_geopackage(path, wanted.raster_size)


def within_bounds(tiles: Sequence[Tile], bounds: Bounds) -> list[Tile]:
    """Return the tiles whose interior meets the area of `bounds`; all of them when it gives none."""
    area = bounds.area
    if area is None:
        return list(tiles)
    groups = {epsg: [tile for tile in tiles if tile.epsg == epsg] for epsg in {tile.epsg for tile in tiles}}
    names = {tile.name for epsg, group in groups.items() for tile in _meeting(group, area, bounds.epsg, epsg)}
    return [tile for tile in tiles if tile.name in names]


def _meeting(tiles: Sequence[Tile], area: BaseGeometry, crs: int, epsg: int) -> list[Tile]:
    """Return the tiles, all of one CRS, that meet an area by more than a common edge."""
    shapes = np.array([tile.shape for tile in tiles])
    same = crs == epsg and crs_of(epsg).is_projected  # in degrees, the area may still lie a turn away
    here = area if same else _projected(area, crs, epsg, shapely.total_bounds(shapes))
    shapely.prepare(here)
    near = np.flatnonzero(shapely.intersects(here, shapes))
    overlaps = shapely.area(shapely.intersection(here, shapes[near])) / shapely.area(shapes[near])
    return [tiles[position] for position in near[overlaps > _SLIVER]]


def _projected(area: BaseGeometry, source: int, target: int, extent: NDArray[np.float64]) -> BaseGeometry:
    """Bring an area into a CRS; only what is near the extent there, because a CRS need not reach around the world."""
    west, south, east, north = transformer(target, LONLAT).transform_bounds(*extent)
    window = shapely.box(west - 1, south - 1, east + 1 + (360 if east < west else 0), north + 1)
    lonlat = shapely.make_valid(area_to_lonlat(area, source))
    turns = (affinity.translate(lonlat, xoff=turn) for turn in (-360.0, 0.0, 360.0))
    near = shapely.union_all([shapely.intersection(turned, window) for turned in turns])
    return shapely.make_valid(transformed(near, LONLAT, target))


def _features(task: AnalysisTask, tiles: Sequence[Tile]) -> list[Feature]:
    """Return a feature for each tile, after the place where it is to be delivered was found good."""
    match task.request.output:
        case ZarrOutput():
            group_of(task.request, task.job_id, task.access["output"]).write(tiles)
            return [Feature(number, tile) for number, tile in enumerate(tiles, start=1)]
        case RasterOutput() as output:
            return _raster_features(task, output, tiles)


def _raster_features(task: AnalysisTask, output: RasterOutput, tiles: Sequence[Tile]) -> list[Feature]:
    """Return a feature for each tile; those whose files all exist are DONE when the request skips them."""
    keys = {tile.name: set(targets(task.request, task.job_id, tile).values()) for tile in tiles}
    existing = _existing(task, keys.values()) if output.skip_existing or not output.overwrite else set()
    _check_targets(keys)
    features = []
    for number, tile in enumerate(tiles, start=1):
        found = keys[tile.name] & existing
        if output.skip_existing and found == keys[tile.name]:
            features.append(Feature(number, tile, status="DONE", delivered=True))
        elif found and not output.overwrite:
            raise RequestFailed(
                f"File s3://{task.request.template.bucket}/{min(found)} exists already; allow overwrite, "
                "or choose another path."
            )
        else:
            features.append(Feature(number, tile))
    return features


def _check_targets(keys: Mapping[str, set[str]]) -> None:
    """Refuse that two files would be one: ids may repeat over a GeoPackage's tables, and names may be put together."""
    writers: dict[str, str] = {}
    for name, key in ((name, key) for name, group in keys.items() for key in group):
        if writers.setdefault(key, name) != name:
            raise RequestFailed(
                f"Features '{writers[key]}' and '{name}' would both be written to {key}; put <tileName> into a path "
                "segment of its own."
            )


def _existing(task: AnalysisTask, keys: Iterable[set[str]]) -> set[str]:
    every_key = {key for group in keys for key in group}
    common = os.path.commonprefix(sorted(every_key))  # noqa: RUF071 (characters are meant: keys are no paths)
    return every_key.intersection(Bucket(task.request.template.bucket, task.access["output"]).keys(common))


def _upload_manifest(task: AnalysisTask, tiles: Sequence[Tile], epsgs: set[int], folder: Path) -> None:
    template = task.request.template
    name = f"featureManifest-{task.job_id}.gpkg"
    rows = [(tile, _uris(task, tile)) for tile in tiles]
    write_manifest(folder / name, rows, epsgs)
    Bucket(template.bucket, task.access["output"]).upload(template.root + name, folder / name)


def _uris(task: AnalysisTask, tile: Tile) -> dict[str, str]:
    """Return where a tile's outputs go, by response identifier: files, or the root of the group that takes them all."""
    if isinstance(task.request.output, ZarrOutput):
        group = group_of(task.request, task.job_id, task.access["output"])
        return {layout.name: group.url for layout in group.layouts}
    keys = targets(task.request, task.job_id, tile)
    return {output: f"s3://{task.request.template.bucket}/{key}" for output, key in keys.items()}
