"""Files that workers on other machines need: put where all can read them, and fetched once by each worker.

They lie below the delivery's place, which every worker reads anyway, in a folder that is named by their content: what
is there need not be uploaded again, and what a worker has fetched cannot be out of date.
"""

import hashlib
import tempfile
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tasks.storage import Storage, open_filesystem

_fetching = threading.Lock()


def stage_files(paths: Iterable[Path], storage: Storage) -> str:
    """Upload local files, whose names differ; the URL of the folder that they lie in then.

    Raises:
        OSError: the object store fails.
    """
    paths = sorted(paths)
    url = f"{storage.tiles_url}/staged/{_digest(paths)}"
    files, target = open_filesystem(url, storage)
    for path in paths:
        if not files.exists(f"{target}/{path.name}"):
            files.put_file(str(path), f"{target}/{path.name}")
    return url


def local_folder(url: str, storage: Storage, pattern: str) -> Path:
    """Give a local folder with those staged files whose name fits; each is fetched once in the life of this process.

    Raises:
        OSError: the object store fails.
    """
    files, source = open_filesystem(url, storage)
    with _fetching:
        folder = Path(_cache().name) / Path(url).name
        folder.mkdir(exist_ok=True)
        for path in (str(path) for path in files.glob(f"{source}/{pattern}")):
            target = folder / Path(path).name
            if not target.exists():
                partial = target.with_suffix(".partial")
                files.get_file(path, str(partial))
                partial.replace(target)
    return folder


@cache
def _cache() -> "tempfile.TemporaryDirectory[str]":
    """A folder of this process alone, which goes with it."""
    return tempfile.TemporaryDirectory(prefix="eopatch-flow-staged-")


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
