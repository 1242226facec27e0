"""What a run shows of itself: pictures, texts, and Prefect artifacts made of them.

Pictures and texts are pure functions; :mod:`tasks.report.publish` holds the shells that talk to Prefect.
"""

from tasks.report.labels import LabelReport
from tasks.report.pictures import quicklook, status_map, thumbnail
from tasks.report.plan import Plan, TilePlan, is_missing, plan_json, plan_markdown, plan_rows, write_plan
from tasks.report.publish import Board, publish_plan, quicklook_of
from tasks.report.texts import (
    SummaryReport,
    artifact_key,
    plain_words,
    summary_markdown,
    tile_rows,
    tiles_markdown,
)

__all__ = [
    "Board",
    "LabelReport",
    "Plan",
    "SummaryReport",
    "TilePlan",
    "artifact_key",
    "is_missing",
    "plain_words",
    "plan_json",
    "plan_markdown",
    "plan_rows",
    "publish_plan",
    "quicklook",
    "quicklook_of",
    "status_map",
    "summary_markdown",
    "thumbnail",
    "tile_rows",
    "tiles_markdown",
    "write_plan",
]
