"""How far a run is, told to whoever listens: a terminal's progress bars, or the run's log; and questions to them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger


@dataclass(frozen=True, slots=True)
class Progress:
    """One stage's state.

    Attributes:
        stage: name for people.
        done: units that are finished.
        total: units in all; 0 when it is not known, or there is nothing to count.
        note: what a person wants to know besides.
        tile: name of a tile that has failed, for the reason in ``note``; else empty.
    """

    stage: str
    done: int = 0
    total: int = 0
    note: str = ""
    tile: str = ""

    @property
    def finished(self) -> bool:
        """Whether all of the stage is done."""
        return self.done >= self.total


FAILURES = "Failed"
"""Stage of what is told of failed tiles."""

Listener = Callable[[Progress], None]
Asker = Callable[[str], bool]

_asker: ContextVar[Asker | None] = ContextVar("asker", default=None)
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


def tell(stage: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Tell the listener; without one, a line of log for what begins, ends, or is worth a note."""
    progress = Progress(stage, done, total, note)
    (_listener.get() or log_progress)(progress)


def tell_failure(tile_name: str, reason: str) -> None:
    """Tell the listener that there will be no EOPatch for a tile; without one, a line of log."""
    (_listener.get() or log_progress)(Progress(FAILURES, note=reason, tile=tile_name))


def current_listener() -> Listener | None:
    """Who listens; None when it is the log."""
    return _listener.get()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send all progress within the block to ``listener`` instead of the log."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def ask(question: str) -> bool:
    """Ask the person at the terminal; anything but yes is no, and so is the end of the input."""
    return (_asker.get() or typed_yes)(question)


@contextmanager
def asked_by(asker: Asker) -> Iterator[None]:
    """Have questions within the block put by ``asker``, which knows what else is on the screen."""
    token = _asker.set(asker)
    try:
        yield
    finally:
        _asker.reset(token)


def typed_yes(question: str) -> bool:
    """Ask on standard output, and wait for the answer on standard input."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def log_progress(progress: Progress) -> None:
    """Log what begins, ends, or has a new note."""
    if not (progress.note or progress.finished):
        return
    try:
        logger = get_run_logger()
    except MissingContextError:
        logger = get_logger("eopatch_flow")
    count = f" {progress.done}/{progress.total}" if progress.total else ""
    subject = f"{progress.stage} {progress.tile}" if progress.tile else progress.stage
    logger.info("%s%s%s", subject, count, f": {progress.note}" if progress.note else "")
