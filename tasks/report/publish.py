"""Prefect artifacts of a run: thin shells around the texts and pictures.

Keys are the same in each run on an area and period, so that Prefect keeps their history.
"""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.ledger import TileRecord
from tasks.report.texts import (
    MAX_ROWS,
    PlanReport,
    SummaryReport,
    artifact_key,
    plan_markdown,
    summary_markdown,
    tile_rows,
    tiles_markdown,
)


def publish_plan(slug: str, plan: PlanReport) -> None:
    """Publish the plan as ``<slug>-plan``."""
    create_markdown_artifact(plan_markdown(plan), key=artifact_key(slug, "plan"), description=plan.title)


def publish_tiles(slug: str, title: str, records: Sequence[TileRecord], picture: bytes) -> None:
    """Publish the status map, a PNG, as ``<slug>-map`` and the tile table as ``<slug>-tiles``."""
    shown = min(len(records), MAX_ROWS)
    about = f"{title}: {shown:,} of {len(records):,} tiles, failures first; ledger.gpkg has them all"
    create_markdown_artifact(tiles_markdown(title, records, picture), artifact_key(slug, "map"), description=title)
    create_table_artifact(tile_rows(records)[:MAX_ROWS], artifact_key(slug, "tiles"), description=about)


def publish_summary(slug: str, summary: SummaryReport) -> None:
    """Publish the summary as ``<slug>-summary``."""
    create_markdown_artifact(summary_markdown(summary), artifact_key(slug, "summary"), description=summary.title)
