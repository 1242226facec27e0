"""A small file that is only ever written over the version that was read: of several writers, one succeeds.

On S3 a conditional PUT does that (Amazon S3 User Guide, "How to prevent object overwrites with conditional writes":
``If-None-Match: *`` for a new object, ``If-Match`` with the ETag for a known one; 412 to whoever was slower, 409 where
two met). In a local folder an advisory lock on a file beside it does, which the kernel releases when its process dies.

Some object stores ignore or refuse the conditions, and some network file systems have no locks. There the file is
written, and read again after a pause; the last writer has it (Fischer's algorithm: right as long as nobody needs longer
than the pause from reading to writing). A warning says so.
"""

import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from tasks.errors import ServiceError

CALL_SECONDS = 15.0
"""How long one call to the store may take, repetitions by its client included."""
SETTLE_SECONDS = 2.0
"""The pause before a file is read again, where conditions are not honoured."""
NEVER = f'"{"0" * 32}"'
"""An ETag that no content has."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system without locks answers."""

Tell = Callable[[str], None]
"""Hears what a person should know."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as it was read.

    Attributes:
        content: all of it.
        version: what tells it from every other one that was ever there.
        age_seconds: since it was written, at least; both times are of the store's clock.
    """

    content: bytes
    version: str
    age_seconds: float


class ConditionalFile(Protocol):
    """A file that knows whether it is still the one that was read."""

    def read(self) -> Stored | None:
        """Read it; None when there is none."""

    def swap(self, content: bytes, version: str | None) -> str | None:
        """Write ``content``, which nobody else ever writes, over ``version``; None is that there is no file yet.

        Gives the new version, or None when the file is another one by now.
        """


def conditional_file(files: AbstractFileSystem, path: str, tell: Tell) -> ConditionalFile:
    """The file at ``path`` of a local or an S3 file system."""
    return LocalFile(Path(path), tell) if isinstance(files, LocalFileSystem) else S3Object(files, path, tell)


class S3Object:
    """An object on S3; its age has the resolution of HTTP's dates, one second."""

    def __init__(self, files: AbstractFileSystem, path: str, tell: Tell) -> None:
        self._files = files
        self._path = path
        self._tell = tell
        self._bucket, self._key, _ = files.split_path(path)
        self._conditional: bool | None = None

    def read(self) -> Stored | None:
        """Read it; None when there is none."""
        try:
            answer = self._call("get_object")
        except FileNotFoundError:
            return None
        content = sync(self._files.loop, answer["Body"].read, timeout=CALL_SECONDS)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            raise ServiceError(f"The object store sent s3://{self._path} without a Date; its age cannot be told.")
        age = parsedate_to_datetime(date) - answer["LastModified"]
        return Stored(content, answer["ETag"], max(age.total_seconds() - 1, 0))

    def swap(self, content: bytes, version: str | None) -> str | None:
        """Write ``content`` over ``version``; gives the new version, or None when the object is another by now."""
        if self._conditional is False:
            return self._swap_unconditionally(content, version)
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            written = str(self._call("put_object", Body=content, **condition)["ETag"])
        except OSError as error:
            if _status(error) == 501:
                return self._swap_unconditionally(content, version)
            if _status(error) in {409, 412} or (_status(error) == 404 and version is not None):
                return _version_of(self, content)  # the client may have repeated what had been done
            raise
        if self._conditional is None:
            self._conditional = self._honours_conditions(content)
        return written if self._conditional else _settled(self, content)

    def _swap_unconditionally(self, content: bytes, version: str | None) -> str | None:
        if self._conditional is None:
            self._warn()
        self._conditional = False
        found = self.read()
        if (found.version if found else None) != version:
            return None
        self._call("put_object", Body=content)
        return _settled(self, content)

    def _honours_conditions(self, content: bytes) -> bool:
        """Whether the store refuses what it must refuse; where it does not, the same content is written again."""
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": NEVER}):
            try:
                self._call("put_object", Body=content, **condition)
            except OSError as error:
                if _status(error) in {409, 412}:
                    continue
                if _status(error) != 501:
                    raise
            self._warn()
            return False
        return True

    def _warn(self) -> None:
        self._tell(
            f"The object store of s3://{self._path} ignores the conditions of a PUT; two runs that begin in the same "
            f"{SETTLE_SECONDS:g} s may both take the lease. Start runs of the same work one after the other."
        )

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._files.call_s3(method, Bucket=self._bucket, Key=self._key, timeout=CALL_SECONDS, **arguments)


class LocalFile:
    """A file in a local folder; a hidden one beside it is locked while it is read or written, and stays."""

    def __init__(self, path: Path, tell: Tell) -> None:
        self._path = path
        self._tell = tell
        self._warned = False

    def read(self) -> Stored | None:
        """Read it; None when there is none."""
        if not self._path.exists():
            return None
        with self._locked() as (now, _):
            return self._read(now)

    def swap(self, content: bytes, version: str | None) -> str | None:
        """Write ``content`` over ``version``; gives the new version, or None when the file is another by now."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as (now, exclusive):
            found = self._read(now)
            if (found.version if found else None) != version:
                return None
            self._replace(content)
        return _digest(content) if exclusive else _settled(self, content)

    def _read(self, now: float) -> Stored | None:
        try:
            with self._path.open("rb") as file:
                content, written = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        return Stored(content, _digest(content), max(now - written, 0))

    def _replace(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=self._path.parent, prefix=f".{self._path.name}-") as folder:
            part = Path(folder) / self._path.name
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)

    @contextmanager
    def _locked(self) -> Iterator[tuple[float, bool]]:
        """Hold the lock; gives the file system's time, and whether others are kept out."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        with lock.open("ab") as file:
            exclusive = self._lock(file.fileno())
            os.utime(lock)
            yield os.fstat(file.fileno()).st_mtime, exclusive

    def _lock(self, descriptor: int) -> bool:
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"Another process has kept {self._path} locked for {CALL_SECONDS:g} s; see whether it hangs."
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self._warn(error)
                return False
            else:
                return True

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._tell(
                f"The file system of {self._path} has no locks ({error.strerror}); two runs that begin in the same "
                f"{SETTLE_SECONDS:g} s may both take the lease. Start runs of the same work one after the other."
            )
        self._warned = True


def _settled(file: ConditionalFile, content: bytes) -> str | None:
    """The version of ``content`` if it still stands after a pause, in which whoever read before has written."""
    time.sleep(SETTLE_SECONDS)
    return _version_of(file, content)


def _version_of(file: ConditionalFile, content: bytes) -> str | None:
    found = file.read()
    return found.version if found and found.content == content else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _status(error: OSError) -> int | None:
    """The HTTP status of an error that s3fs has translated."""
    answer = getattr(error.__cause__, "response", None) or {}
    status: int | None = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
