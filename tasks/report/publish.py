"""Shells around the texts and pictures: quick-looks from where EOPatches lie, and Prefect artifacts.

Keys of artifacts are the same in each run on an area and period, so that Prefect keeps their history.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.evalscript import LAND_COVER_BANDS
from tasks.ledger import TileRecord
from tasks.report.pictures import quicklook
from tasks.report.plan import Plan, plan_markdown, plan_rows
from tasks.report.texts import (
    MAX_ROWS,
    SummaryReport,
    artifact_key,
    summary_markdown,
    tile_rows,
    tiles_markdown,
)

_DRAWN_FILES = ("bbox.*", "timestamps.*", "data/BANDS.*", "data/NDVI.*", "mask/IS_*.*", "mask_timeless/LULC.*")


def quicklook_of(
    files: AbstractFileSystem, folder: str, tile_name: str, bands: Sequence[str] = LAND_COVER_BANDS
) -> bytes:
    """Draw the EOPatch in a folder, local or remote, reading only what the picture needs; a PNG.

    See :func:`tasks.report.pictures.quicklook` for ``bands``.

    Raises:
        ValueError: the EOPatch has no feature to draw.
    """
    if isinstance(files, LocalFileSystem):
        return quicklook(EOPatch.load(folder, lazy_loading=True), tile_name, bands=bands)
    with tempfile.TemporaryDirectory() as copy:
        for pattern in _DRAWN_FILES:
            for path in files.glob(f"{folder}/{pattern}"):
                target = Path(copy) / Path(pattern).parent / Path(path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get(path, str(target), recursive=True)
        return quicklook(EOPatch.load(copy, lazy_loading=True), tile_name, bands=bands)


def publish_plan(slug: str, plan: Plan) -> None:
    """Publish the plan as ``<slug>-plan`` and its table of tiles as ``<slug>-plan-tiles``."""
    shown = min(len(plan.tiles), MAX_ROWS)
    about = f"{plan.title}: {shown:,} of {len(plan.tiles):,} tiles, the dearest first; report/plan.gpkg has them all"
    create_markdown_artifact(plan_markdown(plan), key=artifact_key(slug, "plan"), description=plan.title)
    create_table_artifact(plan_rows(plan)[:MAX_ROWS], artifact_key(slug, "plan-tiles"), description=about)


def publish_tiles(slug: str, title: str, records: Sequence[TileRecord], picture: bytes) -> None:
    """Publish the status map, a PNG, as ``<slug>-map`` and the tile table as ``<slug>-tiles``."""
    shown = min(len(records), MAX_ROWS)
    about = f"{title}: {shown:,} of {len(records):,} tiles, failures first; ledger.gpkg has them all"
    create_markdown_artifact(tiles_markdown(title, records, picture), artifact_key(slug, "map"), description=title)
    create_table_artifact(tile_rows(records)[:MAX_ROWS], artifact_key(slug, "tiles"), description=about)


def publish_summary(slug: str, summary: SummaryReport) -> None:
    """Publish the summary as ``<slug>-summary``."""
    create_markdown_artifact(summary_markdown(summary), artifact_key(slug, "summary"), description=summary.title)
