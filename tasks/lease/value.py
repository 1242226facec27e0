"""What a lease says, and who on this machine says it."""

import getpass
import os
import socket
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LEASE_SECONDS = 120.0
"""How long a lease lasts without a renewal: what a run waits at most for one that was killed on another machine."""
LONGEST_SECONDS = 3600.0
"""A lease that claims more was written by nobody of ours, and must not block for longer than that."""


class Lease(BaseModel):
    """Who works on what. No field is a secret; times are for people, and by the holder's clock.

    Attributes:
        holder: random, new for each time that a lease is taken; empty when the file could not be read.
        fingerprint: identity of the work.
        request_id: the batch request; empty until it is known.
        base_url: the service that has the request.
        run_id: Prefect's id of the flow run; empty outside of a run.
        run_name: what people call it.
        deployment: name of the run's deployment; empty without one.
        host: the machine.
        user: whose process.
        pid: the process.
        process: what tells the process from all others of all machines; empty where that is not known.
        on_abort: what becomes of the request when its run ends before it: "stop", or "leave", and nobody stops it.
        lease_seconds: how long it lasts after each renewal.
        taken_at: UTC.
        renewed_at: UTC.
        expires_at: UTC; when it was released, that moment.
        released: the holder has ended.
        renewals: how often it was written after it was taken.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    holder: str = ""
    fingerprint: str = ""
    request_id: str = ""
    base_url: str = ""
    run_id: str = ""
    run_name: str = ""
    deployment: str = ""
    host: str = ""
    user: str = ""
    pid: int = 0
    process: str = ""
    on_abort: Literal["stop", "leave"] = "stop"
    lease_seconds: float = Field(default=LEASE_SECONDS, gt=0, le=LONGEST_SECONDS)
    taken_at: datetime | None = None
    renewed_at: datetime | None = None
    expires_at: datetime | None = None
    released: bool = False
    renewals: int = 0

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read the file's content; what is not a lease is one of an unknown holder, and lasts as long as any."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return cls()

    def to_json(self) -> bytes:
        """Give the file's content: one field a line."""
        return f"{self.model_dump_json(indent=2)}\n".encode()

    def taken(self, now: datetime, before: Self | None = None) -> Self:
        """The lease as it is first written; it keeps the request of the one before, if that was for the same work."""
        same = before is not None and (before.fingerprint, before.base_url) == (self.fingerprint, self.base_url)
        known = before.request_id if before is not None and same else self.request_id
        return self._at(now, taken_at=now, holder=uuid.uuid4().hex, request_id=known)

    def renewed(self, now: datetime, request_id: str | None = None) -> Self:
        """The lease once more, perhaps with news about the request."""
        known = self.request_id if request_id is None else request_id
        return self._at(now, request_id=known, renewals=self.renewals + 1)

    def ended(self, now: datetime) -> Self:
        """The lease that its holder has given back."""
        return self.renewed(now).model_copy(update={"released": True, "expires_at": now})

    @property
    def owner(self) -> str:
        """Who has it, for people."""
        if not self.holder:
            return "an unknown run (its lease cannot be read)"
        run = f"run {self.run_name}" if self.run_name else "a run"
        deployment = f" of deployment {self.deployment}" if self.deployment else ""
        return f"{run}{deployment} on host {self.host} (pid {self.pid}, user {self.user})"

    def _at(self, now: datetime, **changes: object) -> Self:
        times = {"renewed_at": now, "expires_at": now + timedelta(seconds=self.lease_seconds)}
        return self.model_copy(update=times | changes)


def new_lease(
    fingerprint: str,
    base_url: str,
    *,
    run_id: str = "",
    run_name: str = "",
    deployment: str = "",
    on_abort: Literal["stop", "leave"] = "stop",
    lease_seconds: float = LEASE_SECONDS,
) -> Lease:
    """Describe the wish of this process to do a piece of work.

    Args:
        fingerprint: identity of the work.
        base_url: of the service; a user name or a query in it is left out.
        run_id: Prefect's id of the flow run.
        run_name: what people call it.
        deployment: name of the run's deployment.
        on_abort: what becomes of the request when its run ends before it.
        lease_seconds: how long the lease lasts after each renewal.
    """
    return Lease(
        fingerprint=fingerprint,
        base_url=_public(base_url),
        run_id=run_id,
        run_name=run_name,
        deployment=deployment,
        host=socket.gethostname(),
        user=_user(),
        pid=os.getpid(),
        process=process_identity(),
        on_abort=on_abort,
        lease_seconds=lease_seconds,
    )


def process_identity() -> str:
    """What tells this process from all others, of other machines and containers too; empty where /proc does not tell.

    The kernel's boot id, the PID namespace, the PID and the process's start (proc(5), pid_namespaces(7)).
    """
    started, world = _started(os.getpid()), _world()
    return f"{world} {os.getpid()} {started}" if started and world else ""


def is_dead(process: str) -> bool:
    """Whether the process with this identity has ended for sure: it was one of this very boot and PID namespace."""
    world, _, process_and_start = process.partition(" ")
    if not process_and_start or world != _world():
        return False
    pid, _, started = process_and_start.partition(" ")
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it exists and is another user's; its start may be hidden (hidepid in proc(5))
        return False
    return _started(int(pid)) != started


def _world() -> str:
    """The running kernel and the PID namespace, in which a PID means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started: clock ticks since boot (field 22 of stat, proc(5)); empty for none and for a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in {"Z", "X"} else fields[18]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _public(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
