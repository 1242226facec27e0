"""Progress on a terminal: one live bar a stage; plain lines where the output is not a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from flows.progress import Asker, Listener, Progress, asked_by, listening, typed_yes

PLAIN_LINE_SECONDS = 10.0
"""Without a terminal a stage is told of when it ends, and no more often than this before; what it says besides, at
once."""


@contextmanager
def watched() -> Iterator[Console]:
    """Show all progress within the block; the console to print other lines to."""
    console = Console()
    if not console.is_terminal:
        with listening(_plain_lines(console)):
            yield console
        return
    columns = (TextColumn("{task.description:<14}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Bars(*columns, TextColumn("[dim]{task.fields[note]}"), console=console) as bars,
        listening(_bars(bars)),
        asked_by(_below(bars)),
    ):
        yield console


def _below(bars: Bars) -> Asker:
    """Ask below the bars, which stand still meanwhile."""

    def ask(question: str) -> bool:
        bars.stop()
        try:
            return typed_yes(question)
        finally:
            bars.start()

    return ask


def _bars(bars: Bars) -> Listener:
    shown: dict[str, TaskID] = {}

    def show(progress: Progress) -> None:
        if progress.tile:
            bars.console.print(progress.note, markup=False, highlight=False, soft_wrap=True)
            return
        if progress.stage not in shown:
            shown[progress.stage] = bars.add_task(progress.stage, note="")
        bar = shown[progress.stage]
        bars.update(bar, completed=progress.done, total=progress.total or None)
        if progress.note:
            bars.update(bar, note=escape(progress.note))

    return show


def _plain_lines(console: Console) -> Listener:
    told: dict[str, float] = {}
    ended: set[str] = set()

    def show(progress: Progress) -> None:
        if progress.tile:
            console.print(progress.note, markup=False, highlight=False, soft_wrap=True)
            return
        now = time.monotonic()
        ends = progress.finished and progress.total > 0
        due = now - told.setdefault(progress.stage, now) >= PLAIN_LINE_SECONDS
        says = bool(progress.note) and not progress.total
        if says or (progress.stage not in ended and (ends or due)):
            told[progress.stage] = now
            count = f"{progress.done}/{progress.total}" if progress.total else ""
            console.print(
                f"{progress.stage:<14} {count:>9}  {progress.note}", markup=False, highlight=False, soft_wrap=True
            )
        if ends:
            ended.add(progress.stage)

    return show
