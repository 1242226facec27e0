"""EOPatches on a file system, local or remote: written as a whole and committed by a marker.

A stage's work on an EOPatch is done when its marker, a META_INFO feature, exists with the values that are expected:

* A new EOPatch is saved to a staging folder. On a local disk that folder lies beside the folder of the EOPatches and is
  renamed in one step, so that nobody ever sees half an EOPatch. On an object store all objects are uploaded, each as
  soon as it is made where nothing is replaced, and the marker's object is the last one.
* Features for an existing EOPatch are saved and moved likewise: their old marker goes first, the new one comes last.

What a crash leaves has no marker and is replaced by the next attempt. The marker also tells the sizes of the files that
its stage has written: one listing, in which nothing is read, then finds what was truncated or lost since.

Layout of the files: eo-learn 1.5, ``eolearn.core.eodata_io``. Its own zarr writer drops the endpoint of an S3 server
that is not AWS; files that are uploaded do not depend on that.
"""

import errno
import gzip
import json
import os
import shutil
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import aiohttp
import botocore.exceptions
from botocore.exceptions import BotoCoreError
from eolearn.core.constants import FeatureType
from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem
from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from s3fs import S3FileSystem

from tasks.arrayfiles import ArraySource, save_array
from tasks.arrayfiles import FileFormat as FileFormat  # noqa: PLC0414 - stages take it from here
from tasks.scratch import scratch_folder

P = ParamSpec("P")
T = TypeVar("T")

SIZES = "bytes"
"""Key of a marker under which it tells the size of each file, or folder of zarr, that was committed with it."""

UPLOADED_AT_ONCE = {"batch_size": 4, "max_concurrency": 4, "chunksize": 2**24}
"""How many files of s3fs's, and parts of one, of how many bytes, are in memory at once; it has 128, 10 and 50 MB."""

RETRIES = 3
RETRY_DELAY_SECONDS: list[float] = [2, 10, 30]
"""How often, and after which pauses, a task that moves files is repeated when the network failed."""
STORE_ERRORS = {errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.EBUSY}
"""What s3fs makes of S3's answers: of errors that it does not know, of InternalError, and of SlowDown and the like."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a piece of work is done; true in a condition when it is.

    Attributes:
        done: the work need not be repeated.
        reason: why it must be done, empty when it need not.
        marker: what the marker says; empty when the work must be done.
    """

    done: bool
    reason: str = ""
    marker: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.done


def marker_path(folder: str, marker: str) -> str:
    """Path of a META_INFO feature in an EOPatch's folder."""
    return f"{folder}/meta_info/{marker}.json.gz"


def check_marker(files: AbstractFileSystem, folder: str, marker: str, expected: Mapping[str, Any]) -> Verdict:
    """Compare a marker on the file system with what it must say, and the sizes that it tells with a listing.

    Only the marker is read. One that tells no sizes is believed: what it stands for has been paid for.
    """
    try:
        found = json.loads(gzip.decompress(files.cat_file(marker_path(folder, marker))))
    except FileNotFoundError:
        return Verdict(done=False, reason=f"META_INFO/{marker} does not exist")
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        return Verdict(done=False, reason=f"META_INFO/{marker} is not readable: {error}")
    for key, value in expected.items():
        if found.get(key) != value:
            return Verdict(done=False, reason=f"META_INFO/{marker} says {key} {found.get(key)}, expected {value}")
    damage = _damage(files, folder, found.get(SIZES, {}))
    return Verdict(done=False, reason=damage) if damage else Verdict(done=True, marker=found)


def _damage(files: AbstractFileSystem, folder: str, expected: Mapping[str, int]) -> str:
    """Say which file is not as large as when it was committed; empty when all are."""
    if not expected:
        return ""
    files.invalidate_cache(folder)
    listing = files.find(folder, detail=True)
    root = folder.rstrip("/") + "/"
    found = _sizes({path.removeprefix(root): int(info["size"] or 0) for path, info in listing.items()})
    for name, size in expected.items():
        if name not in found:
            return f"{name} does not exist"
        if found[name] != size:
            return f"{name} has {found[name]} bytes, expected {size}"
    return ""


def _sizes(files: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each file by its path in the EOPatch; all chunks of a zarr array count together, under its folder."""
    total: Counter[str] = Counter()
    for name, size in files.items():
        total["/".join(name.split("/")[:2])] += size
    return dict(total)


class NewPatch:
    """An EOPatch that is being written: a local folder, and what becomes of its files.

    Attributes:
        folder: where its files are put, in eo-learn's layout.
        size: bytes of all files; known once the EOPatch is in its place.
    """

    def __init__(self, staging: Path, uploads: "_Uploads | None") -> None:
        self.folder = staging / "patch"
        self.folder.mkdir()
        self.size = 0
        self._uploads = uploads

    def finished(self, path: Path) -> None:
        """Tell that a file, or folder of zarr, will not change any more: its upload may begin."""
        if self._uploads is not None:
            self._uploads.start(path)


@contextmanager
def new_patch(files: AbstractFileSystem, folder: str, marker: str) -> Iterator[NewPatch]:
    """A new EOPatch, put in place of whatever is in its folder when all of it, the marker too, has been written.

    On an object store files are uploaded while others are still being made, provided that there is no EOPatch yet that
    would be lost if this one failed. The marker is uploaded last in any case.

    Args:
        files: where the folder is.
        folder: the EOPatch's folder; on a local disk its grandparent takes the staging folder.
        marker: name of the META_INFO feature that commits the work.

    Raises:
        OSError: the file system refuses, is full, or is read-only; no EOPatch with this marker is left.
    """
    with _staging_folder(files, folder) as staging:
        local = isinstance(files, LocalFileSystem)
        early = not local and _is_empty(files, folder)
        with _Uploads(files, folder, staging / "patch") as uploads:
            patch = NewPatch(staging, uploads if early else None)
            yield patch
            patch.size = _seal(patch.folder, marker)
            if local:
                _swap(patch.folder, Path(folder), staging / "replaced")
            else:
                if not early:
                    remove_patch(files, folder, marker)
                uploads.complete(marker)


def remove_patch(files: AbstractFileSystem, folder: str, marker: str) -> None:
    """Remove an EOPatch if there is one, its marker first."""
    _remove(files, marker_path(folder, marker))
    _remove(files, folder)


def make_durable(files: AbstractFileSystem, folder: str) -> None:
    """See to it that an EOPatch outlives a power cut; an object store has done so when it answers.

    Raises:
        OSError: the disk fails.
    """
    if isinstance(files, LocalFileSystem):
        for path in [*Path(folder).rglob("*"), Path(folder), Path(folder).parent]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def add_features(
    patch: EOPatch,
    files: AbstractFileSystem,
    folder: str,
    marker: str,
    file_format: FileFormat,
    vectors: Mapping[str, bytes] | None = None,
) -> int:
    """Add all features of an EOPatch to the one in a folder, replacing those of the same name; gives the bytes written.

    Arguments and errors as in :func:`new_patch`; ``vectors`` are timeless vector features by name, as the content of
    their ``.gpkg.gz``. Timestamps and bounding box on the file system stay as they are.
    """
    features = [(kind.value, name) for kind, name in patch.get_features()]
    with _staging_folder(files, folder) as staging:
        staged = staging / "patch"
        save_features(patch, staged, file_format)
        (staged / "bbox.geojson").unlink()
        for name, content in (vectors or {}).items():
            path = staged / FeatureType.VECTOR_TIMELESS.value / f"{name}.gpkg.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            features.append((path.parent.name, name))
        size = _seal(staged, marker)
        _remove(files, marker_path(folder, marker))
        _remove_stored(files, folder, features)
        if isinstance(files, LocalFileSystem):
            _move(staged, Path(folder), marker)
        else:
            with _Uploads(files, folder, staged) as uploads:
                uploads.complete(marker)
    return size


def save_features(patch: EOPatch, folder: Path, file_format: FileFormat) -> None:
    """Save an EOPatch of arrays and META_INFO to a local folder, new or empty, in eo-learn's layout."""
    for feature_type, name in patch.get_features():
        path, content = folder / feature_type.value / name, patch[feature_type, name]
        if feature_type.is_array():
            save_array(ArraySource.of(content, temporal=feature_type.is_temporal()), path, file_format)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{name}.json.gz").write_bytes(gzip.compress(_json(content), mtime=0))
    if patch.bbox is not None:
        (folder / "bbox.geojson").write_bytes(_json(patch.bbox.geojson))
    if patch.timestamps:
        (folder / "timestamps.json").write_bytes(_json([time.isoformat() for time in patch.timestamps]))


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2).encode()


def file_identity(files: AbstractFileSystem, path: str) -> dict[str, int | str]:
    """Size of a file, and what tells its version from others: an object's ETag, else the time of modification.

    Raises:
        FileNotFoundError: there is no such file.
    """
    info = files.info(path, refresh=True)
    stamp = info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""
    return {"size": int(info["size"] or 0), "version": str(stamp).strip('"')}


def is_transient(error: object) -> bool:
    """Tell whether a file operation may succeed when it is repeated: the network's or the object store's fault.

    Missing files, missing rights, full disks and wrong data stay what they are.
    """
    if isinstance(error, OSError) and error.errno in STORE_ERRORS:
        return True
    network = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError, FSTimeoutError)
    cut_off = (aiohttp.ClientPayloadError, botocore.exceptions.IncompleteReadError)
    return isinstance(error, (ConnectionError, TimeoutError, *network, *cut_off))


def network_failed(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Prefect's retry condition for tasks that move files: a bad tile stays bad, a network may come back."""
    return is_transient(state.result(raise_on_failure=False))


def outcome_of(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    """Give what a tile's work gives, or the error that ends it: the other tiles of a chunk go on.

    When the network failed it is repeated, as a task run of its own would be.
    """
    for pause in (*RETRY_DELAY_SECONDS, None):
        try:
            return work(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the flow tells it as the tile's reason
            if pause is None or not is_transient(error):
                _forget_variables(error)
                return error
            time.sleep(pause)
    raise AssertionError  # the last round returns


def _forget_variables(error: BaseException | None) -> None:
    """Free what the functions that an error has left had in memory: a tile's numbers. Where they failed stays known."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextmanager
def _staging_folder(files: AbstractFileSystem, folder: str) -> Iterator[Path]:
    """A new local folder; on a local target it is on the same file system, and earlier leftovers are removed."""
    if not isinstance(files, LocalFileSystem):
        with scratch_folder() as staging:
            yield staging
        return
    parent, prefix = Path(folder).parent.parent, f".{Path(folder).name}.staging-"
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        yield Path(name)


def _seal(staged: Path, marker: str) -> int:
    """Write into a staged EOPatch's marker how large all other files are; gives the bytes of all files."""
    seal = Path(marker_path(str(staged), marker))
    paths = [path for path in staged.rglob("*") if path.is_file() and path != seal]
    sizes = _sizes({path.relative_to(staged).as_posix(): path.stat().st_size for path in paths})
    content = json.loads(gzip.decompress(seal.read_bytes())) | {SIZES: sizes}
    seal.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))
    return sum(sizes.values()) + seal.stat().st_size


def _swap(staged: Path, folder: Path, replaced: Path) -> None:
    """Rename a staged EOPatch to its folder; what was there goes to the staging folder and vanishes with it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.replace(replaced)
    staged.replace(folder)


def _move(staged: Path, folder: Path, marker: str) -> None:
    """Rename every staged feature into an existing EOPatch, the marker last."""
    last = Path(marker_path(str(staged), marker))
    for path in sorted(staged.glob("*/*"), key=lambda path: path == last):
        target = folder / path.relative_to(staged)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)


class _Uploads:
    """Uploads a staged EOPatch to an object store, file by file, and takes back what it has uploaded if that fails."""

    def __init__(self, files: AbstractFileSystem, folder: str, staged: Path) -> None:
        self._files = files
        self._folder = folder
        self._staged = staged
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._begun: dict[Path, Future[None]] = {}

    def start(self, path: Path) -> None:
        """Begin to upload a file, or all files of a folder, after those that were begun before."""
        self._begun[path] = self._thread.submit(self._put, [path] if path.is_file() else _files_in(path))

    def complete(self, marker: str) -> None:
        """Upload what has not been begun, and the marker after all other files have arrived."""
        last = Path(marker_path(str(self._staged), marker))
        for future in self._begun.values():
            future.result()
        self._put([path for path in _files_in(self._staged) if path != last and not self._is_begun(path)])
        self._files.put_file(str(last), self._target(last))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        if error is not None and self._begun:
            with suppress(OSError, BotoCoreError):  # what stays has no marker, and the next attempt replaces it
                _remove(self._files, self._folder)

    def _is_begun(self, path: Path) -> bool:
        return path in self._begun or any(parent in self._begun for parent in path.parents)

    def _put(self, paths: list[Path]) -> None:
        if paths:
            few = UPLOADED_AT_ONCE if isinstance(self._files, S3FileSystem) else {}
            self._files.put([str(path) for path in paths], [self._target(path) for path in paths], **few)

    def _target(self, path: Path) -> str:
        return f"{self._folder}/{path.relative_to(self._staged).as_posix()}"


def _files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _remove_stored(files: AbstractFileSystem, folder: str, features: Iterable[tuple[str, str]]) -> None:
    """Remove features, by type and name, from a folder, in whatever format they are stored there."""
    files.invalidate_cache(folder)
    for feature_type, name in features:
        parent = f"{folder}/{feature_type}"
        for path in files.ls(parent, detail=False) if files.exists(parent) else []:
            if Path(path).name.split(".")[0] == name:
                _remove(files, path)


def _is_empty(files: AbstractFileSystem, folder: str) -> bool:
    """Whether there is no file in a folder; some stores list the folder itself when its files are gone."""
    files.invalidate_cache(folder)
    return all(path == folder for path in files.find(folder))


def _remove(files: AbstractFileSystem, path: str) -> None:
    files.invalidate_cache(path)
    if files.exists(path):
        files.rm(path, recursive=True)
