"""Temporary folders: gone when they are left, and after their process was killed."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tasks import scratch
from tasks.scratch import scratch_folder

HOLDER = """
import sys
from tasks.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "numbers").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "NEW_SECONDS", -1.0)
    (tmp_path / "somebody-elses").mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        with scratch_folder() as mine, scratch_folder() as other:
            assert {path.name for path in tmp_path.iterdir()} == {
                "somebody-elses", folder.name, mine.name, other.name,
            }  # fmt: skip
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (folder / "numbers").exists()
    with scratch_folder():
        assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses"]


def test_a_folder_that_is_new_may_not_be_locked_yet(tmp_path: Path) -> None:
    new = tmp_path / f"{scratch.PREFIX}new"
    new.mkdir()
    with scratch_folder():
        assert new.exists()
