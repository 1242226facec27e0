"""``eopatch-flow check``: what evalscripts read, make and cost on a made-up window, or why they fail."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Final

from localhub.engine import Output
from localhub.engine.limits import Limits, imposing
from localhub.engine.script import is_version_3
from localhub.trial.check import TILE_PIXELS, Reading, Report, Trial, check
from tasks.errors import InvalidInput

LIMITS: Final = Limits(call_seconds=30, memory_bytes=2**31)
"""Of each script."""
_BANDS_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Checked:
    """A file and how it fared.

    Attributes:
        path: of the file.
        report: None where a file of a folder is no evalscript of version 3.
    """

    path: Path
    report: Report | None

    @property
    def state(self) -> str:
        """A word for it."""
        if self.report is None:
            return "skipped"
        return "fails" if self.report.error else "runs"


def trial_of(end: str | None, acquisitions: int, bands: str | None) -> Trial:
    """Read the options.

    Raises:
        InvalidInput: one of them makes no sense.
    """
    own_bands = tuple(name.strip() for name in bands.split(",")) if bands is not None else ()
    if bands is not None and not all(own_bands):
        raise InvalidInput(f"--bands is '{bands}'; give names with commas between them, such as R,G,B,NIR.")
    try:
        last = datetime.now(UTC).date() if end is None else date.fromisoformat(end)
    except ValueError as error:
        raise InvalidInput(f"--end is '{end}'; give a day such as 2026-08-31.") from error
    return Trial(last, acquisitions, own_bands)


def check_all(paths: Iterable[Path], trial: Trial) -> Iterator[Checked]:
    """Check each file, and each JavaScript file below each folder.

    Raises:
        InvalidInput: there is no such file or folder, or no file in it is JavaScript, or one cannot be opened.
    """
    with imposing(LIMITS):
        for path in paths:
            for file in _files(path):
                yield _checked(file, trial, is_meant=file == path)


def _checked(file: Path, trial: Trial, *, is_meant: bool) -> Checked:
    """Check a file. One of a folder may be something else: then it is skipped, as long as nothing says what it is."""
    try:
        source = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"The script {file} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        return Checked(file, Report(f"It is no text in UTF-8: {error}."))
    return Checked(file, check(source, trial) if is_meant or is_version_3(source) else None)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("*.js"))
    if not found:
        raise InvalidInput(f"The folder {path} has no file *.js; give a file, or a folder with evalscripts.")
    return found


def told(checked: Checked) -> str:
    """Tell how a file fared, in a few lines."""
    head = f"{checked.state:<8}{checked.path}"
    if checked.report is None:
        return f"{head}: no evalscript of version 3"
    lines = checked.report.error.splitlines() or list(_account(checked.report))
    return "\n".join(_printable(line) for line in (head, *(f"{'':10}{line}" for line in lines)))


def _printable(line: str) -> str:
    """Leave out what steers a terminal: what scripts print, and how they name things, is theirs."""
    return "".join(character if character.isprintable() else " " for character in line)


def summary(results: Sequence[Checked]) -> str:
    """Count how the files fared."""
    states = [checked.state for checked in results]
    text = f"{states.count('runs')} of {len(states) - states.count('skipped')} evalscripts run"
    text += f", {states.count('fails')} fail" if "fails" in states else ""
    return f"{text}; {states.count('skipped')} files skipped." if "skipped" in states else f"{text}."


def as_json(results: Iterable[Checked]) -> str:
    """Give the same as JSON: a list with an object for each file."""
    return json.dumps([_plain(checked) for checked in results], indent=2, default=dict, allow_nan=False)


def _plain(checked: Checked) -> dict[str, Any]:
    head = {"path": str(checked.path), "state": checked.state}
    return head if checked.report is None else head | asdict(checked.report, dict_factory=_json_fields)


def _json_fields(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Give NaN and the infinities as text, which JSON has no numbers for: a nodataValue may be one."""
    return {name: str(value) if isinstance(value, float) and not isfinite(value) else value for name, value in fields}


def _account(report: Report) -> Iterator[str]:
    for reading in report.readings:
        yield f"reads   {_reading_text(reading)}"
    for line in _outputs_text(report.outputs):
        yield f"makes   {line}"
    if report.user_data_bytes:
        yield f"makes   userdata.json of {report.user_data_bytes:,} bytes"
    each = " and acquisition" if report.per_acquisition else ""
    yield (
        f"costs   {report.batch_pu:,.3g} PU a tile of {TILE_PIXELS:,} x {TILE_PIXELS:,} pixels{each} by Batch, "
        f"{report.process_pu:,.3g} by the Process API"
    )
    for note in report.notes:
        yield f"note    {note}"


def _reading_text(reading: Reading) -> str:
    of = f"{reading.datasource} = {reading.collection}" if reading.datasource else reading.collection
    units: dict[str, list[str]] = {}
    for band, unit in reading.units.items():
        units.setdefault(unit, []).append(band)
    bands = "; ".join(f"{', '.join(_shortened(names))} ({unit})" for unit, names in units.items())
    samples = "" if reading.mosaicking == "SIMPLE" else f", {reading.samples} samples here"
    return f"{of}, {reading.mosaicking}{samples}: {bands or 'no band'}"


def _shortened(names: Sequence[str]) -> list[str]:
    more = len(names) - _BANDS_SHOWN
    return [*names[:_BANDS_SHOWN], *([f"{more} more"] if more > 0 else [])]


def _outputs_text(outputs: Iterable[Output]) -> Iterator[str]:
    """Tell outputs of one kind in one line."""
    kinds: dict[tuple[int, str], list[str]] = {}
    for output in outputs:
        kinds.setdefault((output.bands, output.sample_type), []).append(output.id)
    for (bands, sample_type), names in kinds.items():
        each = " each" if len(names) > 1 else ""
        yield f"{', '.join(_shortened(names))}: {bands} band{'s' if bands > 1 else ''} {sample_type}{each}"
