"""Files for workers elsewhere: fetched once, whoever comes first."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks import staging
from tasks.staging import local_folder, stage_files
from tasks.storage import Storage


def test_threads_that_fetch_first_at_the_same_time_share_one_folder(tmp_path: Path, storage: Storage) -> None:
    file = tmp_path / "polygons.gpkg"
    file.write_bytes(b"polygons")
    url = stage_files([file], storage)
    for _ in range(10):
        staging._cache.cache_clear()
        together = threading.Barrier(4, timeout=20)

        def fetch(together: threading.Barrier = together) -> Path:
            together.wait()
            return local_folder(url, storage, "*.gpkg")

        with ThreadPoolExecutor(4) as threads:
            folders = [future.result() for future in [threads.submit(fetch) for _ in range(4)]]
        assert len(set(folders)) == 1
        assert (folders[0] / file.name).read_bytes() == b"polygons"
