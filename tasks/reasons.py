"""Why tiles failed: equal reasons are one kind, whatever the tile, and are counted instead of repeated."""

from collections import defaultdict
from collections.abc import Mapping


def kind_of(reason: str, tile_name: str) -> str:
    """Give a reason without the tile's name, so that equal reasons of several tiles are equal text."""
    return " ".join(_bare(reason, tile_name).replace(tile_name, "…").split())


def _bare(reason: str, tile_name: str) -> str:
    return reason.removeprefix(f"Tile {tile_name}: ")


class Failures:
    """Failed tiles by kind of reason, and when one is worth a word: the first of a kind, the 10th, the 100th.

    Attributes:
        tiles: names by kind, in the order in which they came.
    """

    def __init__(self) -> None:
        self.tiles: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, tile_name: str, reason: str) -> str:
        """Count a failure; a line to tell of it, or nothing when it is one more of a kind that is known."""
        kind = kind_of(reason, tile_name)
        names = self.tiles[kind]
        names.append(tile_name)
        if len(names) == 1:
            return f"Tile {tile_name} failed: {' '.join(_bare(reason, tile_name).split())}"
        if str(len(names)).strip("0") == "1":
            return f"{len(names):,} tiles failed so far for this reason: {kind}"
        return ""

    def lines(self, named: int = 5) -> list[str]:
        """One line a kind, the most frequent first."""
        return [
            f"Failed, {len(names):,} tile{'s' if len(names) > 1 else ''} ({some(names, named)}): {kind}"
            for kind, names in by_frequency(self.tiles)
        ]


def by_frequency(groups: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Give groups of names, the largest first."""
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def some(names: list[str], named: int) -> str:
    """Name the first few, and count the others."""
    more = f" and {len(names) - named:,} more" if len(names) > named else ""
    return ", ".join(sorted(names)[:named]) + more
