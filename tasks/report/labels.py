"""Markdown and table rows about labels: coverage, pixels of each class, and what was odd about the polygons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.classes import LandCoverClass, known_class
from tasks.quality import LabelQuality, together
from tasks.report.markdown import bullets, escaped, joined, table

SHOWN_VALUES = 20
"""How many unmapped values the summary names; the file has them all."""


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What there is to tell about a run's labels.

    Attributes:
        tiles: quality by name of the tile.
        classes: names and colours; None for those of SI_LULC.
        findings: what the files had beside the tiles' polygons, such as ``{"without a polygon": 3}``; empty where no
            file was read because all labels existed.
        file: where the tiles' quality stands.
    """

    tiles: Mapping[str, LabelQuality]
    classes: Sequence[LandCoverClass] | None = None
    findings: Mapping[str, int] = field(default_factory=dict)
    file: str = ""


def labels_markdown(report: LabelReport) -> str:
    """Tell of all tiles together; empty without any."""
    if not report.tiles:
        return ""
    whole = together(report.tiles.values())
    total = sum(whole.pixels.values())
    names = {one.id: one.name for one in report.classes or ()}
    rows = [
        (_class_name(number, names), f"{count:,}", f"{count / total:.1%}")
        for number, count in sorted(whole.pixels.items())
    ]
    facts = {
        "Coverage": f"{whole.coverage:.1%} of {total:,} pixels in {len(report.tiles):,} tiles",
        "Polygons": f"{whole.polygons:,}, those on borders of tiles counted in each",
        "Overlaps": f"{whole.overlap_pixels:,} pixels lie in several of {whole.overlapping:,} polygons",
        "Repaired": f"{whole.repaired:,} polygons had invalid geometries, which were made valid",
        "Left out": _left_out(whole, report.findings),
    }
    if report.file:
        facts["Each tile"] = f"`{report.file}`"
    return joined("## Reference", table(("Class", "Pixels", "Share"), rows), bullets(facts)).rstrip("\n")


def label_rows(tiles: Mapping[str, LabelQuality]) -> list[dict[str, str]]:
    """Rows of the table of labels, the least covered first, then by name; every row has the same keys."""
    ordered = sorted(tiles.items(), key=lambda item: (item[1].coverage, item[0]))
    return [_row(name, one) for name, one in ordered]


def _row(name: str, one: LabelQuality) -> dict[str, str]:
    return {
        "tile": name,
        "coverage": f"{one.coverage:.1%}",
        "classes": f"{len(one.pixels.keys() - {0})}",
        "polygons": f"{one.polygons:,}",
        "overlap": f"{one.overlap_pixels:,} pixels of {one.overlapping:,} polygons",
        "repaired": f"{one.repaired:,}",
        "without class": f"{one.without_class:,}",
        "unmapped": _values(one.unmapped),
    }


def _left_out(whole: LabelQuality, findings: Mapping[str, int]) -> str:
    """Polygons without a label, by reason."""
    counts = {
        "with a null class": whole.without_class,
        "with a value in no class": sum(whole.unmapped.values()),
        **findings,
    }
    parts = [f"{count:,} {why}" for why, count in counts.items() if count]
    values = f" ({escaped(_values(whole.unmapped))})" if whole.unmapped else ""
    return f"{', '.join(parts)}{values}" if parts else "nothing"


def _values(unmapped: Mapping[str, int]) -> str:
    """Values and their numbers, the most frequent first."""
    ordered = sorted(unmapped.items(), key=lambda item: (-item[1], item[0]))
    more = ", …" if len(ordered) > SHOWN_VALUES else ""
    return ", ".join(f"{value}: {count:,}" for value, count in ordered[:SHOWN_VALUES]) + more


def _class_name(number: int, names: Mapping[int, str]) -> str:
    if number == 0:
        return "0 no reference"
    return f"{number} {names.get(number, known_class(number).name)}"
