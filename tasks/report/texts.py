"""Markdown and table rows about a run: where each tile stands, how it ended."""

import base64
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tasks.ledger import TileRecord, TileState
from tasks.reasons import by_frequency, kind_of, some
from tasks.report.bill import bill_markdown
from tasks.report.labels import LabelReport, labels_markdown
from tasks.report.markdown import bullets, escaped, joined, table
from tasks.report.pictures import STATE_STYLES
from tasks.report.plan import action

MAX_ROWS = 500
"""Tiles in a table; the ledger has them all."""
_NAMED = 5  # tiles named with a reason
_REASON_LETTERS = 300

_ATTENTION = {state: place for place, state in enumerate(STATE_STYLES)}  # failures first


@dataclass(frozen=True, slots=True)
class SummaryReport:
    """How a run ended.

    Attributes:
        title: area and period.
        records: all tiles.
        goal: the state in which a tile is complete: labelled, or converted where there is no reference.
        message: what the run did, in a sentence.
        seconds: duration of the run.
        places: what can be found where, such as ``{"EOPatches": "s3://…"}``.
        cost_pu: what the service says that the request costs, processing units; None when none was needed.
        endpoint_url: of the S3 server with the results; empty for AWS.
        labels: what there is to tell of them; None without a reference.
    """

    title: str
    records: Sequence[TileRecord]
    goal: TileState
    message: str
    seconds: float
    places: Mapping[str, str]
    cost_pu: float | None = None
    endpoint_url: str = ""
    labels: LabelReport | None = None


def artifact_key(area_slug: str, what: str) -> str:
    """Key of an artifact: lower-case letters, digits and dashes, as Prefect asks; the same for each run on an area.

    Raises:
        ValueError: nothing of the slug or the subject is left.
    """
    parts = [plain_words(area_slug), plain_words(what)]
    if not all(parts):
        raise ValueError(f"An artifact key needs letters or digits; it was asked for '{area_slug}' and '{what}'.")
    return "-".join(parts)


def tile_rows(records: Iterable[TileRecord]) -> list[dict[str, str]]:
    """Rows of the tile table, failures first, then by name; every row has the same keys."""
    ordered = sorted(records, key=lambda record: (_ATTENTION[record.state], record.tile.name))
    return [_tile_row(record) for record in ordered]


def tiles_markdown(title: str, records: Sequence[TileRecord], picture: bytes) -> str:
    """Show the status map, a PNG, with the counts of the states."""
    return joined(
        f"# Tiles: {escaped(title)}",
        _states_text(records),
        f"![Status of {len(records):,} tiles]({data_uri(picture, 'png')})",
    )


def data_uri(picture: bytes, kind: str) -> str:
    """Give a picture as an address that contains it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def within(pictures: Mapping[str, str], letters: int) -> dict[str, str]:
    """Take the first addresses of pictures that together have no more than so many letters."""
    sizes = accumulate(map(len, pictures.values()))
    return {name: address for (name, address), size in zip(pictures.items(), sizes, strict=True) if size <= letters}


def summary_markdown(summary: SummaryReport, pictures: Mapping[str, str] | None = None) -> str:
    """Summarise a run: how many tiles are complete, why others are not, where everything is, what it cost.

    Args:
        summary: what to tell.
        pictures: addresses of quick-looks, by name of the tile.
    """
    records = summary.records
    complete = sum(action(record, summary.goal) == "skip" for record in records)
    share = complete / len(records) if records else 0.0
    return joined(
        f"# Summary: {escaped(summary.title)}",
        f"**{complete:,} of {len(records):,} tiles are complete ({share:.0%})** after {_duration(summary.seconds)}. "
        f"{escaped(summary.message)}",
        table(("State", "Tiles"), [(state.value, f"{count:,}") for state, count in _counts(records).items()]),
        _reasons_text(records),
        bill_markdown(records, summary.cost_pu),
        "" if summary.labels is None else labels_markdown(summary.labels),
        bullets(
            {name: f"`{place}`" for name, place in summary.places.items()}
            | {"Read": _megabytes(sum(record.bytes_read for record in records))}
            | {"Written": _megabytes(sum(record.bytes_written for record in records))}
        ),
        *(f"![Quick-look of tile {escaped(name)}]({address})" for name, address in (pictures or {}).items()),
        _opening_text(summary),
    )


# ---- parts ----


def _tile_row(record: TileRecord) -> dict[str, str]:
    tile = record.tile
    return {
        "tile": tile.name,
        "state": record.state.value,
        "reason": _shortened(record.reason),
        "CRS": f"EPSG:{tile.epsg}",
        "pixels": f"{tile.width:,} x {tile.height:,}",
        "attempts": f"{record.attempts:,}",
        "read": _megabytes(record.bytes_read),
        "written": _megabytes(record.bytes_written),
        "time": f"{record.seconds:,.1f} s",
        "estimate": "" if record.estimate_pu is None else f"{record.estimate_pu:,.2f} PU",
        "price": "" if record.price_pu is None else f"{record.price_pu:,.2f} PU",
    }


def _counts(records: Iterable[TileRecord]) -> dict[TileState, int]:
    """Number of tiles of each state that occurs, in the order of attention."""
    counts = Counter(record.state for record in records)
    return {state: counts[state] for state in _ATTENTION if counts[state]}


def _states_text(records: Sequence[TileRecord]) -> str:
    return " · ".join(f"{state.value}: **{count:,}**" for state, count in _counts(records).items())


def _reasons_text(records: Iterable[TileRecord]) -> str:
    """Reasons, the most frequent first, with the first tiles that have them; empty without any."""
    tiles: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.reason:
            tiles[_shortened(kind_of(record.reason, record.tile.name))].append(record.tile.name)
    if not tiles:
        return ""
    rows = [(why, f"{len(names):,}", some(names, _NAMED)) for why, names in by_frequency(tiles)]
    return table(("Reason", "Tiles", "Which"), rows)


def _opening_text(summary: SummaryReport) -> str:
    """Lines of Python that open an EOPatch, and the ledger."""
    ready = [
        record.tile.name for record in summary.records if record.state in {TileState.CONVERTED, TileState.LABELLED}
    ]
    if not ready or "EOPatches" not in summary.places:
        return ""
    folder, ledger = f"{summary.places['EOPatches']}/eopatch_{ready[0]}", summary.places.get("Ledger", "")
    if folder.startswith("s3://"):
        server = f'endpoint_url="{summary.endpoint_url}"' if summary.endpoint_url else ""
        fetch = [f"files = s3fs.S3FileSystem({server})  # keys from the environment"]
        opened = [f'files.get("{folder}", "eopatch_{ready[0]}", recursive=True)']
        opened += [f'patch = EOPatch.load("eopatch_{ready[0]}")']
        tiles = [f'tiles = geopandas.read_file(files.open("{ledger}"), engine="pyogrio")']
        imports = ["import geopandas", "import s3fs", "from eolearn.core import EOPatch", "", *fetch]
    else:
        opened = [f'patch = EOPatch.load("{folder}")']
        tiles = [f'tiles = geopandas.read_file("{ledger}", engine="pyogrio")']
        imports = ["import geopandas", "from eolearn.core import EOPatch", ""]
    lines = [*imports, *opened, *(tiles if ledger else [])]
    return "\n".join(["## How to open them", "", "```python", *lines, "```"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _REASON_LETTERS else flat[: _REASON_LETTERS - 1] + "…"


def plain_words(text: str) -> str:
    """Latin letters without their accents, and digits, in lower case; dashes for all else."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")
