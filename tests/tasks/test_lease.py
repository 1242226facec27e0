"""Leases: one holder at a time, whatever dies, hangs, disagrees about the time, or answers late."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import s3fs
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from localhub.seaweed import SeaweedFS
from tasks.errors import LeaseHeld, LeaseLost
from tasks.lease import Found, Holding, Lease, held, holding, new_lease, read_lease, store
from tests.tasks.object_store import Conditions, ObjectStore

ROOT = Path(__file__).parents[2]
RIVALS = 8


@dataclass(frozen=True)
class Place:
    """Where a test keeps its leases; `s3` is what another process needs to get there."""

    open_files: Callable[[], AbstractFileSystem]
    folder: str
    s3: dict[str, str] | None

    @property
    def files(self) -> AbstractFileSystem:
        return self.open_files()

    @property
    def path(self) -> str:
        return f"{self.folder}/lease.json"

    def read(self) -> Found:
        found = read_lease(self.files, self.path)
        assert found is not None
        return found


@pytest.fixture(params=["folder", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place(lambda: LocalFileSystem(auto_mkdir=True), f"{tmp_path}/area-year", None)
    place: Place = request.getfixturevalue("s3_place")
    return place


@pytest.fixture
def s3_place(s3: SeaweedFS, bucket: str) -> Place:
    """A bucket whose first write, for which SeaweedFS makes volumes, is over."""

    def open_files() -> s3fs.S3FileSystem:
        client = {"endpoint_url": s3.endpoint_url}
        return s3fs.S3FileSystem(
            key=s3.access_key, secret=s3.secret_key, client_kwargs=client, use_listings_cache=False
        )

    open_files().pipe_file(f"{bucket}/first", b"write")
    access = {"endpoint_url": s3.endpoint_url, "key": s3.access_key, "secret": s3.secret_key}
    return Place(open_files, f"{bucket}/area-year", access)


def wish(name: str = "spring", lease_seconds: float = 60.0) -> Lease:
    return new_lease("0123456789abcdef", "https://sh.example.org", run_name=name, lease_seconds=lease_seconds)


@contextmanager
def another_process(place: Place, **order: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of `lease_holder.py`, which is killed in the end."""
    text = json.dumps({"s3": place.s3, "path": place.path, "name": "rival", "lease_seconds": 1.0, **order})
    command = [sys.executable, str(ROOT / "tests/tasks/lease_holder.py"), text]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def wait_for(happened: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def take(place: Place, lease: Lease, path: str = "") -> Holding:
    """A lease that is not renewed by itself."""
    file = store.conditional_file(place.files, path or place.path, holding.logger.warning)
    return holding._take(file, lease, place.path, 0, lambda _: None)


def test_a_lease_tells_in_lines_of_json_who_works_on_what(place: Place) -> None:
    lease = new_lease(
        "0123456789abcdef", "https://sh.example.org", run_id="id-1", run_name="spring", deployment="night"
    )
    with held(place.files, place.path, lease) as mine:
        mine.note_request("request-1")
        content = place.files.cat_file(place.path).decode()
        said = json.loads(content)
    assert len(content.splitlines()) == len(said) + 2
    expected = {
        "fingerprint": "0123456789abcdef", "request_id": "request-1", "base_url": "https://sh.example.org",
        "run_id": "id-1", "run_name": "spring", "deployment": "night", "pid": os.getpid(), "released": False,
    }  # fmt: skip
    assert {name: said[name] for name in expected} == expected
    assert datetime.fromisoformat(said["expires_at"]) - datetime.fromisoformat(said["renewed_at"]) == timedelta(
        seconds=120
    )
    assert datetime.fromisoformat(said["renewed_at"]) > datetime.fromisoformat(said["taken_at"])


def test_whoever_comes_second_is_told_who_has_it_since_when_and_what_to_do(place: Place) -> None:
    with held(place.files, place.path, wish()), pytest.raises(LeaseHeld) as caught:
        take(place, wish("autumn"))
    message = str(caught.value)
    assert f"The work in {place.folder} is being done by run spring on host {os.uname().nodename} (pid" in message
    assert "renewed 0 s ago, until 20" in message
    assert message.endswith("wait for it, or stop it.")


@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt])
def test_a_lease_is_free_again_however_its_holder_ends(place: Place, end: type[BaseException] | None) -> None:
    def work() -> None:
        with held(place.files, place.path, wish()):
            if end is not None:
                raise end

    if end is None:
        work()
    else:
        with pytest.raises(end):
            work()
    assert place.read().lease.released
    with held(place.files, place.path, wish("autumn")) as mine:
        assert mine.before is not None
        assert mine.before.lease.run_name == "spring"
        assert place.read().lease.run_name == "autumn"


def test_of_many_who_take_a_lease_at_once_one_has_it_and_no_other(place: Place) -> None:
    rounds, barrier = (20 if place.s3 is None else 4), threading.Barrier(RIVALS)
    paths = [f"{place.folder}/{number}/lease.json" for number in range(rounds)]
    for path in paths[::2]:  # every other lease is taken over, not made
        with held(place.files, path, wish("earlier")):
            pass

    def compete(_: int) -> list[str]:
        files, got = place.files, []
        for path in paths:
            with ExitStack() as stack:
                barrier.wait(60)
                try:
                    mine = stack.enter_context(held(files, path, wish()))
                    got.append(mine.lease.holder)
                except LeaseHeld:
                    got.append("")
                barrier.wait(60)
        return got

    with ThreadPoolExecutor(RIVALS) as pool:
        outcomes = list(pool.map(compete, range(RIVALS)))
    winners = [[holder for holder in tried if holder] for tried in zip(*outcomes, strict=True)]
    assert [len(one) for one in winners] == [1] * rounds
    for path, (winner,) in zip(paths, winners, strict=True):
        found = read_lease(place.files, path)
        assert found is not None
        assert found.lease.holder == winner


def test_of_several_processes_one_has_the_lease_and_the_file_names_it(place: Place) -> None:
    paths = [f"{place.folder}/{number}/lease.json" for number in range(4)]
    for path in paths[::2]:
        with held(place.files, path, wish("earlier")):
            pass
    with ExitStack() as stack:
        rivals = [
            stack.enter_context(
                another_process(place, rounds=paths, name=f"rival-{n}", lease_seconds=60, elsewhere=True)
            )
            for n in range(3)
        ]
        assert [said(rival) for rival in rivals] == ["ready"] * 3
        begin = time.time() + 0.3
        for rival in rivals:
            assert rival.stdin is not None
            rival.stdin.write(f"{begin}\n")
            rival.stdin.flush()
        got = {rival.pid: json.loads(said(rival)) for rival in rivals}
    assert sorted(path for taken in got.values() for path in taken) == sorted(paths)
    for pid, taken in got.items():
        for path in taken:
            found = read_lease(place.files, path)
            assert found is not None
            assert found.lease.pid == pid


def test_what_a_killed_process_of_another_machine_held_is_taken_when_it_has_expired_and_no_sooner(place: Place) -> None:
    with another_process(place, elsewhere=True, lease_seconds=1.5) as rival:
        assert said(rival) == "held"
        rival.kill()
        killed = time.monotonic()
        with pytest.raises(LeaseHeld, match="run rival"):
            take(place, wish())
        told: list[str] = []
        with held(place.files, place.path, wish(), wait_seconds=20, tell=told.append) as mine:
            waited = time.monotonic() - killed
            assert mine.before is not None
            assert mine.before.lease.request_id == "request-1"
    assert 1.5 * 3 / 4 - 0.3 < waited < 1.5 + 8  # its last renewal may have been a quarter of the time earlier
    assert [text.split(" run ")[0] for text in told] == [
        f"Waiting. The work in {place.folder} is being done by",
        "Took over the work of",
    ]


def test_what_a_killed_process_of_this_machine_held_is_free_at_once(place: Place) -> None:
    with another_process(place, lease_seconds=600) as rival:
        assert said(rival) == "held"
        assert not place.read().free
        rival.kill()
        wait_for(lambda: place.read().free, "the zombie's lease to be free", 5)
        with held(place.files, place.path, wish()) as mine:
            assert mine.before is not None
            assert mine.before.lease.run_name == "rival"


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), timedelta(minutes=-10)])
def test_a_wrong_clock_neither_steals_a_live_lease_nor_keeps_a_dead_one(
    place: Place, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    live = take(place, wish())
    abandoned = take(place, wish(lease_seconds=0.2), f"{place.folder}/abandoned.json")
    true_time = time.time
    monkeypatch.setattr(holding, "_now", lambda: datetime.now(UTC) + ahead)
    monkeypatch.setattr(time, "time", lambda: true_time() + ahead.total_seconds())
    with pytest.raises(LeaseHeld):
        take(place, wish("autumn"))
    with held(place.files, f"{place.folder}/abandoned.json", wish("autumn"), wait_seconds=10) as mine:
        assert mine.before is not None
        assert mine.before.lease == abandoned.lease
    live.check()
    live.renew()


def test_a_holder_that_stood_still_learns_that_its_lease_was_taken(s3_place: Place) -> None:
    with another_process(s3_place, elsewhere=True) as rival:
        assert said(rival) == "held"
        rival.send_signal(signal.SIGSTOP)
        with held(s3_place.files, s3_place.path, wish(), wait_seconds=20) as mine:
            rival.send_signal(signal.SIGCONT)
            assert said(rival).startswith("lost ")
            assert rival.wait(10) == 0
            mine.renew()
            assert s3_place.read().lease.holder == mine.lease.holder


def test_a_lease_that_was_taken_over_is_neither_renewed_nor_released_by_its_old_holder(place: Place) -> None:
    old = take(place, wish(lease_seconds=0.2))
    with held(place.files, place.path, wish("autumn"), wait_seconds=10) as mine:
        for act in (old.check, old.renew, lambda: old.note_request("request-1")):
            with pytest.raises(LeaseLost):
                act()
        with pytest.raises(LeaseLost, match="taken over by run autumn on host"):
            old.check()
        old.release()
        found = place.read().lease
        assert (found.holder, found.released, found.request_id) == (mine.lease.holder, False, "")


def test_a_lease_lasts_as_long_as_its_holder_works(s3_place: Place) -> None:
    with held(s3_place.files, s3_place.path, wish(lease_seconds=2.0)) as mine:
        until = time.monotonic() + 2.6
        while time.monotonic() < until:
            mine.check()
            with pytest.raises(LeaseHeld):
                take(s3_place, wish("autumn"))
            time.sleep(0.1)
        assert mine.lease.renewals >= 3


def test_a_waiting_run_goes_on_when_the_other_ends_and_gives_up_when_time_is_up(place: Place) -> None:
    first = ExitStack()
    first.enter_context(held(place.files, place.path, wish()))
    with pytest.raises(LeaseHeld), held(place.files, place.path, wish("autumn"), wait_seconds=0.3):
        pytest.fail("two hold it")
    timer = threading.Timer(0.5, first.close)
    timer.start()
    told: list[str] = []
    with held(place.files, place.path, wish("autumn"), wait_seconds=20, tell=told.append):
        assert place.read().lease.run_name == "autumn"
    timer.join()
    assert len(told) == 1  # however often it looked
    assert told[0].startswith("Waiting. The work in ")


def test_the_next_run_of_the_same_work_keeps_the_request_in_the_lease_and_other_work_does_not(tmp_path: Path) -> None:
    place = Place(LocalFileSystem, str(tmp_path), None)
    with held(place.files, place.path, wish()) as mine:
        mine.note_request("request-1")
    with held(place.files, place.path, wish("autumn")) as mine:
        assert mine.lease.request_id == "request-1"
    other = new_lease("fedcba9876543210", "https://sh.example.org")
    with held(place.files, place.path, other) as mine:
        assert mine.lease.request_id == ""
        assert mine.before is not None
        assert mine.before.lease.request_id == "request-1"


def test_how_long_a_lease_has_been_expired_is_told_by_the_store(place: Place) -> None:
    assert read_lease(place.files, place.path) is None
    take(place, wish(lease_seconds=0.2))
    assert place.read().expired_for < timedelta(0)
    wait_for(lambda: place.read().expired_for > timedelta(seconds=0.5), "the lease to expire", 10)
    with held(place.files, place.path, wish()):
        assert timedelta(seconds=-60) <= place.read().expired_for < timedelta(seconds=-50)
    assert place.read().expired_for >= timedelta(0)


@pytest.mark.parametrize("content", [b"", b'{"holder": "a', b"[]", b'{"holder": "a", "lease_seconds": 1e9}'])
def test_a_file_that_is_no_lease_blocks_as_long_as_one_and_no_longer(tmp_path: Path, content: bytes) -> None:
    files, path = LocalFileSystem(), tmp_path / "lease.json"
    path.write_bytes(content)
    with pytest.raises(LeaseHeld, match="an unknown run"), held(files, str(path), wish()):
        pytest.fail("it may be somebody's")
    os.utime(path, (time.time() - 121,) * 2)
    with held(files, str(path), wish()):
        assert json.loads(path.read_text())["run_name"] == "spring"


def test_a_lease_that_somebody_removed_is_written_again_unless_another_run_has_it(place: Place) -> None:
    mine = take(place, wish())
    place.files.rm(place.path)
    mine.renew()
    assert place.read().lease.holder == mine.lease.holder
    place.files.rm(place.path)
    take(place, wish("autumn"))
    with pytest.raises(LeaseLost, match="run autumn"):
        mine.renew()


def test_no_secret_stands_in_a_lease(s3_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_place.s3 is not None
    for name in ("AWS_SECRET_ACCESS_KEY", "SH_CLIENT_SECRET", "PREFECT_API_KEY"):
        monkeypatch.setenv(name, f"planted-{name}")
    lease = new_lease("f", "https://planted-user:planted-password@sh.example.org/api?token=planted", run_name="spring")
    with held(s3_place.files, s3_place.path, lease):
        content = s3_place.files.cat_file(s3_place.path).decode()
    assert json.loads(content)["base_url"] == "https://sh.example.org/api"
    assert "planted" not in content
    assert s3_place.s3["secret"] not in content


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_where_conditions_are_not_honoured_one_has_it_all_the_same_and_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, conditions: Conditions
) -> None:
    monkeypatch.setattr(store, "SETTLE_SECONDS", 0.5)
    barrier = threading.Barrier(4)

    def compete(files: s3fs.S3FileSystem) -> bool:
        barrier.wait(60)
        try:
            with held(files, "bucket/lease.json", wish()):
                barrier.wait(60)
        except LeaseHeld:
            barrier.wait(60)
            return False
        return True

    with ObjectStore(conditions) as server, ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(compete, [server.files() for _ in range(4)])) == [False, False, False, True]
        assert "ignores the conditions of a PUT" in caplog.text


def test_a_file_system_without_locks_is_warned_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(store.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(store.fcntl, "flock", no_locks)
    with held(LocalFileSystem(), f"{tmp_path}/lease.json", wish()) as mine:
        mine.renew()
        with pytest.raises(LeaseHeld), held(LocalFileSystem(), f"{tmp_path}/lease.json", wish("autumn")):
            pytest.fail("two hold it")
    assert "has no locks (No locks available)" in caplog.text


def test_a_store_that_is_down_for_less_than_the_lease_costs_nothing_and_for_longer_ends_the_work() -> None:
    with ObjectStore() as server, held(server.files(), "bucket/lease.json", wish(lease_seconds=2)) as mine:
        server.down = True
        wait_for(lambda: mine._failure != "", "a renewal to fail", 5)
        mine.check()
        server.down = False
        wait_for(lambda: mine._failure == "", "the lease to be renewed", 5)
        mine.check()
        server.down = True
        wait_for(lambda: refused(mine.check) is not None, "the lease to pass", 5)
        assert "lasts 2 s and was renewed" in str(refused(mine.check))
        assert "ServiceUnavailable" in str(refused(mine.check))
        server.down = False  # nobody has taken it in the meantime
        wait_for(lambda: refused(mine.check) is None, "the lease to be ours again", 5)


def test_a_write_that_the_client_repeats_because_its_answer_was_lost_has_succeeded() -> None:
    with ObjectStore() as server, held(server.files(), "bucket/lease.json", wish()) as mine:
        server.lose_answer = "dropped"
        mine.note_request("request-1")
        assert server.lose_answer == ""
        found = read_lease(server.files(), "bucket/lease.json")
        assert found is not None
        assert found.lease == mine.lease


def test_a_write_that_was_done_though_the_store_denies_it_leaves_the_lease_ours() -> None:
    with ObjectStore() as server, held(server.files(), "bucket/lease.json", wish()) as mine:
        server.lose_answer = "error"
        with pytest.raises(OSError, match="InternalError"):
            mine.note_request("request-1")
        mine.note_request("request-2")
        found = read_lease(server.files(), "bucket/lease.json")
        assert found is not None
        assert found.lease == mine.lease


def refused(act: Callable[[], None]) -> LeaseLost | None:
    try:
        act()
    except LeaseLost as error:
        return error
    return None
