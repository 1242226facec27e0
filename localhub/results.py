"""The files of one tile on their way to the bucket: uploaded at once, or kept on disk until they are due."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localhub.objectstore import Bucket

_INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One computed file."""

    output: str
    """Identifier of the response that it belongs to."""
    key: str
    """Where it goes in the bucket."""
    path: Path
    """Where it lies on disk."""


def upload(files: Sequence[ResultFile], bucket: Bucket) -> None:
    """Write the files into the bucket, replacing what is there."""
    for file in files:
        bucket.upload(file.key, file.path)


def keep(files: Sequence[ResultFile], folder: Path) -> None:
    """Move the files, which lie in one folder, into `folder`: with all of them or not there, whatever happens."""
    staging = folder.with_name(f"{folder.name}.part")
    for leftover in (staging, folder):  # of a try before a crash
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir(parents=True)
    for number, file in enumerate(files):
        shutil.move(file.path, staging / str(number))
    index = [[file.output, file.key] for file in files]
    (staging / _INDEX).write_text(json.dumps(index))
    staging.rename(folder)


def kept(folder: Path) -> list[ResultFile]:
    """Return the files that `keep` has put into `folder`."""
    index = json.loads((folder / _INDEX).read_text())
    return [ResultFile(output, key, folder / str(number)) for number, (output, key) in enumerate(index)]
