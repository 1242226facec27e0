"""What the labels of a run are made of: of this run's tiles, and of those that earlier runs have labelled."""

import hashlib
import json
from dataclasses import asdict

from flows.follow import Pipeline
from flows.order import Order
from tasks.ledger import TileState
from tasks.quality import LabelQuality, quality_csv, read_quality_csv
from tasks.reference import Findings, label_quality
from tasks.report import LabelReport
from tasks.storage import open_filesystem, read_file, write_file

FILE = "report/reference.csv"
"""Quality of each tile's labels, beside the data."""


def label_report(order: Order, pipeline: Pipeline) -> LabelReport | None:
    """Gather the quality of all labelled tiles, and keep it beside the data; None without a reference or labels.

    What this run did not label stands in the file of an earlier run, else in the EOPatch's marker.
    """
    reference = order.parameters.reference
    names = {tile.name: tile for tile in pipeline.in_state(TileState.LABELLED)}
    if reference is None or not names:
        return None
    storage, url = order.parameters.storage, f"{order.folder}/{FILE}"
    identity = _hash(order)
    known = _earlier(order, url, identity) | pipeline.quality
    tiles: dict[str, LabelQuality] = {}
    for name, tile in sorted(names.items()):
        files, folder = open_filesystem(order.patch_url(tile), storage)
        quality = known.get(name) or label_quality(files, folder)
        if quality is not None:
            tiles[name] = quality
    write_file(url, quality_csv(tiles, identity).encode(), storage)
    findings = _in_words(pipeline.reference.findings) if pipeline.reference is not None else {}
    return LabelReport(tiles=tiles, classes=reference.classes, findings=findings, file=url)


def _hash(order: Order) -> str:
    """Tell the order's reference from others."""
    assert order.reference is not None  # noqa: S101 - the caller has looked
    return hashlib.sha256(json.dumps(asdict(order.reference), sort_keys=True).encode()).hexdigest()[:16]


def _earlier(order: Order, url: str, identity: str) -> dict[str, LabelQuality]:
    """What earlier runs wrote about the same reference; nothing when there is no such file, or it is damaged."""
    try:
        return read_quality_csv(read_file(url, order.parameters.storage).decode(), identity)
    except (FileNotFoundError, KeyError, ValueError, TypeError):  # it is made again from the markers
        return {}


def _in_words(findings: Findings) -> dict[str, int]:
    """What the files had that no tile's marker tells."""
    return {
        "without a polygon, of those in the files": findings.without_polygon,
        "too small": findings.too_small,
    }
