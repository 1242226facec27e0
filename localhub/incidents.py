"""The last errors of the service, for whoever looks at it: what its API refused and what its log warns of.

They are kept in memory: a restart forgets them, the log does not.
"""

import logging
import re
import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

KEPT = 50
"""So many incidents are kept; a new one drops the oldest."""
_TEXT_LIMIT = 500
_JOB_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that went wrong."""

    time: datetime
    """Aware, UTC."""
    what: str
    """The request with its status, or the part of localhub that warned."""
    text: str
    """The error's own words, shortened."""

    @property
    def job_id(self) -> str | None:
        """The first job's id that is named in it."""
        found = _JOB_ID.search(f"{self.what} {self.text}")
        return found[0] if found else None


class Incidents(logging.Handler):
    """The newest incidents; as a handler of the log it takes warnings and worse. Safe to use from several threads."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[Incident] = deque(maxlen=KEPT)
        self._guard = threading.Lock()

    def add(self, what: str, text: str) -> None:
        """Keep an incident of now."""
        short = text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}…"
        with self._guard:
            self._kept.append(Incident(datetime.now(UTC), what, short))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of the log; of an exception its kind only, its text may hold anything."""
        kind = record.exc_info[0] if record.exc_info else None
        note = f" ({kind.__name__})" if kind else ""
        self.add(record.name, record.getMessage() + note)

    def newest(self) -> list[Incident]:
        """Return what is kept, newest first."""
        with self._guard:
            return list(reversed(self._kept))
