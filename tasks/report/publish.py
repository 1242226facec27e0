"""Shells around the texts and pictures: quick-looks from where EOPatches lie, and Prefect artifacts.

Keys of artifacts are the same in each run on an area, so that Prefect keeps their history also where the period moves
along with a schedule; titles tell the period.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast
from uuid import UUID

from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from tasks.classes import LAND_COVER_CLASSES, LandCoverClass
from tasks.evalscript import LAND_COVER_BANDS
from tasks.ledger import TileRecord
from tasks.quality import LabelQuality
from tasks.report.labels import label_rows
from tasks.report.pictures import quicklook, thumbnail
from tasks.report.plan import Plan, plan_markdown, plan_rows
from tasks.report.texts import (
    MAX_ROWS,
    SummaryReport,
    artifact_key,
    data_uri,
    summary_markdown,
    tile_rows,
    tiles_markdown,
    within,
)

EMBEDDED_LETTERS = 1_500_000
"""What pictures may take in an artifact; Prefect Cloud takes 5 MiB."""
_DRAWN_FILES = ("bbox.*", "timestamps.*", "data/BANDS.*", "data/NDVI.*", "mask/IS_*.*", "mask_timeless/LULC.*")


def quicklook_of(
    files: AbstractFileSystem,
    folder: str,
    tile_name: str,
    bands: Sequence[str] = LAND_COVER_BANDS,
    classes: Sequence[LandCoverClass] = LAND_COVER_CLASSES,
) -> bytes:
    """Draw the EOPatch in a folder, local or remote, reading only what the picture needs; a PNG.

    See :func:`tasks.report.pictures.quicklook` for ``bands`` and ``classes``.

    Raises:
        ValueError: the EOPatch has no feature to draw.
    """
    if isinstance(files, LocalFileSystem):
        return quicklook(EOPatch.load(folder, lazy_loading=True), tile_name, bands=bands, classes=classes)
    with tempfile.TemporaryDirectory() as copy:
        for pattern in _DRAWN_FILES:
            for path in files.glob(f"{folder}/{pattern}"):
                target = Path(copy) / Path(pattern).parent / Path(path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get(path, str(target), recursive=True)
        return quicklook(EOPatch.load(copy, lazy_loading=True), tile_name, bands=bands, classes=classes)


def publish_plan(area: str, plan: Plan) -> None:
    """Publish the plan as ``<area>-plan`` and its table of tiles as ``<area>-plan-tiles``."""
    shown = min(len(plan.tiles), MAX_ROWS)
    about = f"{plan.title}: {shown:,} of {len(plan.tiles):,} tiles, the dearest first; report/plan.gpkg has them all"
    create_markdown_artifact(plan_markdown(plan), key=artifact_key(area, "plan"), description=plan.title)
    create_table_artifact(plan_rows(plan)[:MAX_ROWS], artifact_key(area, "plan-tiles"), description=about)


class Board:
    """The artifacts of one run that change while it goes on: made once, renewed afterwards.

    Args:
        area: name of the area, of which keys are made: ``<area>-progress``, ``<area>-map`` and so on.
    """

    def __init__(self, area: str) -> None:
        self._area = area
        self._ids: dict[str, UUID] = {}

    def progress(self, percent: float, about: str) -> None:
        """Show how far the run is, 0 to 100."""
        key = artifact_key(self._area, "progress")
        if key in self._ids:
            update_progress_artifact(self._ids[key], percent, about)
        else:
            self._ids[key] = cast(UUID, create_progress_artifact(percent, key, about))

    def tiles(self, title: str, records: Sequence[TileRecord], picture: bytes) -> None:
        """Show the status map, a PNG, as ``<area>-map`` and the tile table as ``<area>-tiles``."""
        shown = min(len(records), MAX_ROWS)
        about = f"{title}: {shown:,} of {len(records):,} tiles, failures first; ledger.gpkg has them all"
        rows = tile_rows(records)[:MAX_ROWS]
        self._markdown("map", tiles_markdown(title, records, picture), title)
        self._table("tiles", rows, about)

    def labels(self, title: str, tiles: Mapping[str, LabelQuality]) -> None:
        """Show what the labels are made of as ``<area>-reference``."""
        shown = min(len(tiles), MAX_ROWS)
        about = (
            f"{title}: {shown:,} of {len(tiles):,} tiles, the least covered first; report/reference.csv has them all"
        )
        self._table("reference", label_rows(tiles)[:MAX_ROWS], about)

    def summary(self, summary: SummaryReport, pictures: Mapping[str, bytes]) -> None:
        """Show the summary with small copies of the pictures, PNGs by name of their tile."""
        embedded = {name: data_uri(thumbnail(picture), "jpeg") for name, picture in pictures.items()}
        self._markdown("summary", summary_markdown(summary, within(embedded, EMBEDDED_LETTERS)), summary.title)

    def _markdown(self, what: str, text: str, about: str) -> None:
        key = artifact_key(self._area, what)
        if not self._renewed(key, text, about):
            self._ids[key] = cast(UUID, create_markdown_artifact(text, key, about))

    def _table(self, what: str, rows: list[dict[str, str]], about: str) -> None:
        key = artifact_key(self._area, what)
        if not self._renewed(key, json.dumps(rows), about):
            self._ids[key] = cast(UUID, create_table_artifact(rows, key, about))

    def _renewed(self, key: str, data: str, about: str) -> bool:
        """Renew an artifact that this run has made; whether it has."""
        if key not in self._ids:
            return False
        with get_client(sync_client=True) as client:
            client.update_artifact(self._ids[key], ArtifactUpdate(data=data, description=about))
        return True
