"""Pieces of markdown."""

from collections.abc import Iterable, Mapping, Sequence

_NUMBERS = frozenset(
    {"Tiles", "Pixels", "Samples", "Share", "Low", "Likely", "High", "Bill", "PU"}
)  # headers of columns


def joined(*blocks: str) -> str:
    """Put blocks one below the other; empty ones are left out."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table; columns of numbers are right-aligned."""
    rule = ["---:" if name in _NUMBERS else "---" for name in header]
    lines = [header, rule, *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(items: Mapping[str, str]) -> str:
    """Make a list of named facts."""
    return "\n".join(f"- **{name}**: {text}" for name, text in items.items())


def escaped(text: str) -> str:
    """Text that can neither end a table cell nor be read as HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
