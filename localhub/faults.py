"""Faults on demand: what localhub does wrong when it is told to, so that a client can be shown to survive it.

Everything is deterministic: a fault counts requests, tiles or seconds and never rolls dice. Without any fault localhub
is the service as it should be.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Operation = Literal[
    "token", "create", "list", "get", "update", "analyse", "start", "stop", "grids", "catalog", "process", "any"
]
"""Kinds of requests; `any` is each of them but `token`."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApiFault(_Model):
    """What goes wrong with requests of one kind. The first fault of the list that is due is the one that happens.

    It happens before anybody looks at the request's token, to valid and invalid requests alike.
    """

    operation: Operation = "any"
    """The requests that it is about."""
    status: int | None = Field(default=None, ge=400, le=599)
    """Answer with this status and the service's error body; None gives the true answer."""
    executed: bool = False
    """Carry the request out before it waits and fails: a create that is answered with 502 and yet has bought."""
    seconds: float = Field(default=0, ge=0, le=3600)
    """Time before the answer; longer than the client's patience, and it hangs. A client that hangs up meanwhile has had
    its request carried out when `executed`; otherwise it is not, not even later."""
    retry_after_ms: int | None = Field(default=None, ge=0)
    """Header `Retry-After` of the answer with `status`, in milliseconds as the service sends it."""
    skip: int = Field(default=0, ge=0)
    """So many requests of that kind, from when the fault was set, are none of its business; another may hit them."""
    times: int | None = Field(default=1, ge=1)
    """Requests that it hits; None hits all that follow."""

    @field_validator("status")
    @classmethod
    def _is_registered(cls, status: int | None) -> int | None:
        return None if status is None else HTTPStatus(status).value

    def concerns(self, operation: Operation) -> bool:
        """Tell whether the fault is about requests of that kind."""
        return self.operation == operation or (self.operation == "any" and operation != "token")


class TileFault(_Model):
    """What goes wrong with tiles whose name matches."""

    kind: Literal["fatal", "no_data", "undelivered", "truncated", "missing"]
    """`fatal`: tries fail. `no_data`: as if there were no scene. `undelivered`: DONE before its files are there.
    `truncated`, `missing`: DONE and delivered, with half of the file, or without it."""
    tile: str = "*"
    """Name, with * and ? as wildcards."""
    output: str = "*"
    """Outputs that `truncated` and `missing` are about, with wildcards."""
    times: int | None = Field(default=None, ge=1)
    """`fatal`: tries that fail before one succeeds; None fails for ever."""
    seconds: float | None = Field(default=None, ge=0)
    """`undelivered`: time from DONE to the delivery; None never delivers."""

    def concerns(self, tile: str) -> bool:
        """Tell whether the fault is about the tile of that name."""
        return fnmatchcase(tile, self.tile)


def first_of(kind: str, faults: Iterable[TileFault], output: str | None = None) -> TileFault | None:
    """Return the first fault of a kind, if any; with `output`, of those that are about the output of that name."""
    return next((f for f in faults if f.kind == kind and (output is None or fnmatchcase(output, f.output))), None)


class DatabaseFault(_Model):
    """What is wrong with the execution database in the bucket."""

    place: Literal["root", "request", "bucket"] = "root"
    """Where it is put: where the delivery's path ends before its first placeholder, in a folder of the request's id
    below that, or at the top of the bucket. The documentation's pages differ in this."""
    torn_uploads: int = Field(default=0, ge=0)
    """So many uploads at the beginning hold the first half of the file, as if caught in the middle; the next one mends
    it, within a second. A restart of localhub is another beginning."""
    stale_seconds: float = Field(default=0, ge=0)
    """The copy in the bucket shows what was true so many seconds ago, also after the job has ended."""


class Faults(_Model):
    """All faults of a localhub."""

    api: tuple[ApiFault, ...] = ()
    """Of requests, in order of precedence."""
    tiles: tuple[TileFault, ...] = ()
    """Of tiles."""
    database: DatabaseFault = DatabaseFault()
    """Of the execution database."""
    hidden_from_get_seconds: float = Field(default=0, ge=0)
    """So long after its creation a request is answered with 404, whether it is got, updated, analysed, started or
    stopped."""
    hidden_from_list_seconds: float = Field(default=0, ge=0)
    """So long after its creation a request is absent from the list."""
    tile_seconds: float = Field(default=0, ge=0)
    """A job's tiles end one by one, at least so many seconds apart."""
    out_of_pu_after_tiles: int | None = Field(default=None, ge=0)
    """A job is STOPPED with OUT_OF_PU when so many of its tiles have been processed since it was started. A restart of
    localhub counts as a start."""
    unhealthy_after_tiles: int | None = Field(default=None, ge=0)
    """A job is STOPPED with UNHEALTHY when so many of its tiles have been processed since it was started."""

    def of_tile(self, name: str) -> tuple[TileFault, ...]:
        """Return the faults of the tile of that name."""
        return tuple(fault for fault in self.tiles if fault.concerns(name))


@dataclass(frozen=True, slots=True)
class Count:
    """What an ApiFault has met."""

    seen: int = 0
    """Requests of its kind."""
    hits: int = 0
    """Those of them that it happened to."""


def counted(
    faults: Sequence[ApiFault], counts: Sequence[Count], operation: Operation
) -> tuple[list[Count], ApiFault | None]:
    """Return the counts of `faults` after one more request, and the fault that happens to it."""
    hit = next(
        (
            number
            for number, (fault, count) in enumerate(zip(faults, counts, strict=True))
            if fault.concerns(operation)
            and count.seen >= fault.skip
            and (fault.times is None or count.hits < fault.times)
        ),
        None,
    )
    after = [
        Count(count.seen + fault.concerns(operation), count.hits + (number == hit))
        for number, (fault, count) in enumerate(zip(faults, counts, strict=True))
    ]
    return after, None if hit is None else faults[hit]


class FaultBook:
    """The faults that hold now: those of the settings until somebody sets others. Safe to use from several threads."""

    def __init__(self, faults: Faults) -> None:
        self._lock = threading.Lock()
        self.set(faults)

    @property
    def current(self) -> Faults:
        """The faults that hold now; ask again each time, they change while localhub runs."""
        return self._current

    def set(self, faults: Faults) -> None:
        """Let other faults hold from now on; they count from the beginning."""
        with self._lock:
            self._current = faults
            self._counts = [Count() for _ in faults.api]

    def take(self, operation: Operation) -> ApiFault | None:
        """Count a request, and return the fault that happens to it."""
        with self._lock:
            self._counts, fault = counted(self._current.api, self._counts, operation)
            return fault
