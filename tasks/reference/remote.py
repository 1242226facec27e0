"""Prepared polygons for workers on other machines."""

from dataclasses import replace
from pathlib import Path

from tasks.reference.preparation import PreparedReference
from tasks.staging import local_folder, stage_files
from tasks.storage import Storage


def staged(prepared: PreparedReference, storage: Storage) -> PreparedReference:
    """Put the prepared files where workers on other machines can read them; see :mod:`tasks.staging`."""
    return replace(prepared, folder=stage_files(Path(prepared.folder).iterdir(), storage))


def fetched(prepared: PreparedReference, epsg: int, storage: Storage) -> PreparedReference:
    """Have the files of a CRS on the local disk; staged ones are fetched once by each process."""
    if not prepared.folder.startswith("s3://"):
        return prepared
    return replace(prepared, folder=str(local_folder(prepared.folder, storage, f"*-{epsg}.*")))
