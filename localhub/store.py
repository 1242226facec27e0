"""What localhub remembers: accounts, the signing key, jobs and their features in SQLite; credentials apart.

The database holds no access key. Those of a job lie in a file of their own, readable by the owner only, and are deleted
when the job has ended.
"""

import hashlib
import json
import os
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localhub.auth import Account, next_not_before
from localhub.jobs import Action, Job, Status
from localhub.objectstore import Access
from localhub.pricing import request_cost
from tasks.grid import Tile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (client_id TEXT PRIMARY KEY, account_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS revocations (not_before INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, account_id TEXT NOT NULL, request TEXT NOT NULL, created TEXT NOT NULL, updated TEXT NOT NULL,
    status TEXT NOT NULL, error TEXT, action TEXT NOT NULL, action_updated TEXT, stopped_reason TEXT
);
CREATE TABLE IF NOT EXISTS features (
    job_id TEXT NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL, name TEXT NOT NULL, epsg INTEGER NOT NULL,
    min_x REAL NOT NULL, min_y REAL NOT NULL, max_x REAL NOT NULL, max_y REAL NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL,
    status TEXT NOT NULL, error TEXT, delivered INTEGER NOT NULL, cost_pu REAL NOT NULL, tries INTEGER NOT NULL,
    begun INTEGER NOT NULL, PRIMARY KEY (job_id, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS features_by_status ON features (job_id, status);
CREATE TABLE IF NOT EXISTS deliveries (
    job_id TEXT NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL, due TEXT NOT NULL, PRIMARY KEY (job_id, number)
) WITHOUT ROWID;
"""
_ADDED_COLUMNS = (
    ("accounts", "balance_pu", "REAL"),
    ("jobs", "body_hash", "TEXT"),
    ("features", "outline", "BLOB"),
    ("features", "tile_id", "INTEGER"),
)
"""Columns (table, name, type) that the schema did not have from the beginning; a database that lacks one gets it,
empty. They follow those of the schema in this order, in a new database too, so that rows are the same in both."""
_ADD_JOB = "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE_JOB = (
    "UPDATE jobs SET id = ?, account_id = ?, request = ?, created = ?, updated = ?, status = ?, error = ?, action = ?, "
    "action_updated = ?, stopped_reason = ? WHERE id = ?"
)
_SET_FEATURE = "REPLACE INTO features VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FOUND = "instr(lower(id || ' ' || coalesce(json_extract(request, '$.description'), '')), lower(?))"
_FIND_JOBS = (
    f"SELECT * FROM jobs WHERE account_id = ? AND {_FOUND} AND created <= coalesce(?, created) "  # noqa: S608 (a constant)
    "ORDER BY {order} LIMIT ? OFFSET ?"
)
_NEWEST_JOBS = f"SELECT * FROM jobs WHERE {_FOUND} ORDER BY created DESC, rowid DESC LIMIT ? OFFSET ?"  # noqa: S608
_FEATURE_GROUPS = (
    "SELECT job_id, status, error IS NOT NULL, delivered, begun, tries > 0, count(*), total(cost_pu) FROM features "
    "WHERE job_id IN ({marks}) GROUP BY 1, 2, 3, 4, 5, 6"
)
_ORDERS = {
    "created": "created, rowid",
    "created:desc": "created DESC, rowid DESC",
    "status": "status, created, rowid",
    "status:desc": "status DESC, created, rowid",
}
SORTS = frozenset(_ORDERS)
"""Values of a list's `sort` parameter."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One tile of a job and what became of it."""

    number: int
    """Position in the job, from 1; the `id` of the execution database."""
    tile: Tile
    status: str = "PENDING"
    """PENDING, DONE or FATAL."""
    error: str | None = None
    delivered: bool = False
    """Its outputs are in the bucket."""
    cost_pu: float = 0.0
    tries: int = 0
    """Failed tries."""
    begun: bool = False
    """It was given to a worker at least once: files at its targets may be its own."""


@dataclass(frozen=True, slots=True)
class Create:
    """A create that was executed: what a client has bought."""

    job_id: str
    account_id: str
    body_hash: str
    """The same for bodies that differ in nothing but credentials; unknown, and so the job's id, for old databases."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come."""

    features: int
    ended: int
    """DONE or FATAL."""
    processed: int
    """Those of them that a worker has had: not those that were skipped."""
    cost_pu: float
    """Sum over the processed features."""

    @property
    def billed_pu(self) -> float:
        """What the request costs so far, which is what its account has been charged; nothing before the first tile."""
        return request_cost(self.cost_pu) if self.processed else 0.0


@dataclass(frozen=True, slots=True)
class FeatureGroup:
    """The features of a job that are alike, counted."""

    job_id: str
    status: str
    error: bool
    """They have an error text."""
    delivered: bool
    begun: bool
    tries: bool
    """They have failed tries."""
    count: int
    cost_pu: float
    """Sum over the group."""


class Store:
    """The database and the credential files below a folder. Safe to use from several threads of one process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._credentials = folder / "credentials"
        self._credentials.mkdir(mode=0o700, exist_ok=True)
        self._lock = threading.RLock()
        path = folder / "localhub.sqlite"
        path.touch(mode=0o600)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        self._database.executescript(_SCHEMA)
        self._add_missing_columns()

    def _add_missing_columns(self) -> None:
        with self._transaction() as database:
            for table, column, kind in _ADDED_COLUMNS:
                if column not in {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}:
                    database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._database.in_transaction:  # a part of this thread's own
                yield self._database
                return
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _rows(self, statement: str, values: Iterable[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(statement, tuple(values)).fetchall()

    def signing_key(self) -> bytes:
        """Return the key that signs tokens; made once, so that tokens survive a restart."""
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO keys VALUES ('signing', ?)", (secrets.token_bytes(32),))
            return bytes(database.execute("SELECT value FROM keys WHERE name = 'signing'").fetchone()[0])

    def tokens_not_before(self) -> int:
        """Return the Unix time from which tokens are valid; tokens issued earlier have been made invalid."""
        return int(self._rows("SELECT coalesce(max(not_before), 0) FROM revocations")[0][0])

    def expire_tokens(self) -> None:
        """Make every token issued so far invalid, also after a restart."""
        with self._transaction() as database:
            not_before = next_not_before(time.time(), self.tokens_not_before())
            database.execute("INSERT INTO revocations VALUES (?)", (not_before,))

    def open_accounts(self, client_ids: Iterable[str], balance_pu: float | None) -> None:
        """Make the accounts of OAuth clients that have none, each with that balance; None never ends."""
        with self._transaction() as database:
            for client_id in client_ids:
                row = (client_id, str(uuid.uuid4()), balance_pu)
                database.execute("INSERT OR IGNORE INTO accounts VALUES (?, ?, ?)", row)

    def accounts(self) -> dict[Account, float | None]:
        """Return the balance in processing units by account, in the order of the client ids; None never ends."""
        rows = self._rows("SELECT * FROM accounts ORDER BY client_id")
        return {Account(row["client_id"], row["account_id"]): row["balance_pu"] for row in rows}

    def account(self, client_id: str) -> Account | None:
        """Return the account of an OAuth client, None when it has none."""
        rows = self._rows("SELECT * FROM accounts WHERE client_id = ?", [client_id])
        return Account(client_id, rows[0]["account_id"]) if rows else None

    def balance(self, account_id: str) -> float | None:
        """Return the processing units that an account has left, below 0 when it owes some; None never ends."""
        rows = self._rows("SELECT balance_pu FROM accounts WHERE account_id = ?", [account_id])
        return rows[0]["balance_pu"] if rows else None

    def set_balance(self, account_id: str, balance_pu: float | None) -> None:
        """Let an account have so many processing units; None never ends."""
        with self._transaction() as database:
            database.execute("UPDATE accounts SET balance_pu = ? WHERE account_id = ?", (balance_pu, account_id))

    def charge(self, account_id: str, pu: float) -> float | None:
        """Take processing units from an account and return its balance, as `balance` does.

        An account that does not end stays so. The last tiles may cost more than is left: the balance falls below 0
        then, and the account is out of processing units at 0 or below.
        """
        with self._transaction() as database:
            database.execute("UPDATE accounts SET balance_pu = balance_pu - ? WHERE account_id = ?", (pu, account_id))
        return self.balance(account_id)

    def add(self, job: Job, access: dict[str, Access]) -> None:
        """Keep a new job, and what it needs to reach the object store by the name of the place."""
        path = self._credentials / f"{job.id}.json"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({place: value.as_json() for place, value in access.items()}, file)
        with self._transaction() as database:
            database.execute(_ADD_JOB, (*_job_values(job), _hash(job.request)))

    def creates(self) -> list[Create]:
        """Return every create that was executed, in order."""
        rows = self._rows("SELECT id, account_id, coalesce(body_hash, id) FROM jobs ORDER BY created, rowid")
        return [Create(*row) for row in rows]

    def access(self, job_id: str) -> dict[str, Access]:
        """Return the access that a job was created with, by the name of the place."""
        kept = json.loads((self._credentials / f"{job_id}.json").read_text())
        return {place: Access.from_json(value) for place, value in kept.items()}

    def has_access(self, job_id: str) -> bool:
        """Tell whether the credentials of a job are still there."""
        return (self._credentials / f"{job_id}.json").exists()

    def forget_access(self, job_id: str) -> None:
        """Delete the credentials of a job that has ended."""
        (self._credentials / f"{job_id}.json").unlink(missing_ok=True)

    def job(self, job_id: str) -> Job | None:
        """Return a job, None when there is none of that id."""
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", [job_id])
        return _job(rows[0]) if rows else None

    def change(self, job_id: str, rule: Callable[[Job], Job]) -> Job:
        """Apply `rule` to an existing job and keep the result; nobody else changes the job in between."""
        with self._transaction() as database:
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
            job = rule(_job(row))
            database.execute(_UPDATE_JOB, (*_job_values(job), job_id))
            return job

    def jobs(
        self, account_id: str, *, search: str, sort: str, count: int, offset: int, created_until: datetime | None = None
    ) -> list[Job]:
        """Return a page of an account's jobs, whose id or description contains `search`; `sort` is one of SORTS."""
        statement = _FIND_JOBS.format(order=_ORDERS[sort])
        rows = self._rows(statement, [account_id, search, _time(created_until), count, offset])
        return [_job(row) for row in rows]

    def all_jobs(self) -> list[Job]:
        """Return every job, oldest first."""
        return [_job(row) for row in self._rows("SELECT * FROM jobs ORDER BY created, rowid")]

    def newest_jobs(self, *, search: str, count: int, offset: int) -> list[Job]:
        """Return a page of all accounts' jobs whose id or description contains `search`, newest first."""
        return [_job(row) for row in self._rows(_NEWEST_JOBS, [search, count, offset])]

    def job_counts(self) -> dict[Status, int]:
        """Return how many jobs there are of each status that occurs."""
        rows = self._rows("SELECT status, count(*) FROM jobs GROUP BY status")
        return {Status(status): count for status, count in rows}

    def set_features(self, job_id: str, features: Iterable[Feature]) -> None:
        """Keep the features of a job in place of any earlier ones."""
        with self._transaction() as database:
            database.execute("DELETE FROM features WHERE job_id = ?", (job_id,))
            database.executemany(_SET_FEATURE, ((job_id, *_feature_values(feature)) for feature in features))

    def set_feature(self, job_id: str, feature: Feature) -> None:
        """Keep what has become of one feature."""
        with self._transaction() as database:
            database.execute(_SET_FEATURE, (job_id, *_feature_values(feature)))

    def end_feature(self, job: Job, feature: Feature, due: datetime | None = None) -> None:
        """Keep a feature that has ended, charge the job's account for it, and when its kept files are due.

        All of it or nothing, so that a crash neither forgets a charge nor repeats one. The request's minimum is charged
        with its first feature: at any time the account has paid what the API shows as the request's cost.
        """
        with self._transaction() as database:
            before = self.progress(job.id).billed_pu
            database.execute(_SET_FEATURE, (job.id, *_feature_values(feature)))
            self.charge(job.account_id, self.progress(job.id).billed_pu - before)
            if due is not None:
                database.execute("REPLACE INTO deliveries VALUES (?, ?, ?)", (job.id, feature.number, _time(due)))

    def deliveries(self, job_id: str) -> dict[int, datetime]:
        """Return when the kept files of a job's features are due, by the feature's number."""
        rows = self._rows("SELECT number, due FROM deliveries WHERE job_id = ?", [job_id])
        return {row["number"]: datetime.fromisoformat(row["due"]) for row in rows}

    def delivered(self, job_id: str, number: int) -> None:
        """Keep that the files of a feature, which were due, are in the bucket."""
        with self._transaction() as database:
            database.execute("DELETE FROM deliveries WHERE job_id = ? AND number = ?", (job_id, number))
            database.execute("UPDATE features SET delivered = 1 WHERE job_id = ? AND number = ?", (job_id, number))

    def features(self, job_id: str, *, every: int = 1) -> list[Feature]:
        """Return a job's features in order; of many, only each `every`-th."""
        statement = "SELECT * FROM features WHERE job_id = ? AND number % ? = 0 ORDER BY number"
        return [_feature(row) for row in self._rows(statement, [job_id, every])]

    def failed_features(self, job_id: str, count: int) -> list[Feature]:
        """Return the first `count` features of a job that are FATAL, or DONE without error and yet not delivered."""
        failed = "status = 'FATAL' OR (status = 'DONE' AND error IS NULL AND NOT delivered)"
        statement = f"SELECT * FROM features WHERE job_id = ? AND ({failed}) ORDER BY number LIMIT ?"  # noqa: S608
        return [_feature(row) for row in self._rows(statement, [job_id, count])]

    def feature_groups(self, job_ids: Sequence[str]) -> list[FeatureGroup]:
        """Return how many features of some jobs are alike in state."""
        marks = ", ".join("?" * len(job_ids))
        return [
            FeatureGroup(job_id, status, bool(error), bool(delivered), bool(begun), bool(tries), count, cost_pu)
            for job_id, status, error, delivered, begun, tries, count, cost_pu in self._rows(
                _FEATURE_GROUPS.format(marks=marks), job_ids
            )
        ]

    def pending(self, job_id: str, after: int, count: int) -> list[Feature]:
        """Return up to `count` features that are PENDING, with a number above `after`."""
        rows = self._rows(
            "SELECT * FROM features WHERE job_id = ? AND status = 'PENDING' AND number > ? ORDER BY number LIMIT ?",
            [job_id, after, count],
        )
        return [_feature(row) for row in rows]

    def progress(self, job_id: str) -> Progress:
        """Return how many features a job has, how many have ended, and what they cost."""
        row = self._rows(
            "SELECT count(*), coalesce(sum(status != 'PENDING'), 0), coalesce(sum(status != 'PENDING' AND begun), 0), "
            "total(cost_pu) FROM features WHERE job_id = ?",
            [job_id],
        )[0]
        return Progress(*row)


def _time(value: datetime | None) -> str | None:
    return value.astimezone(UTC).isoformat(timespec="microseconds") if value else None


def _hash(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _job_values(job: Job) -> tuple[Any, ...]:
    return (
        job.id,
        job.account_id,
        json.dumps(job.request),
        _time(job.created),
        _time(job.updated),
        job.status,
        job.error,
        job.action,
        _time(job.action_updated),
        job.stopped_reason,
    )


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        account_id=row["account_id"],
        request=json.loads(row["request"]),
        created=datetime.fromisoformat(row["created"]),
        updated=datetime.fromisoformat(row["updated"]),
        status=Status(row["status"]),
        error=row["error"],
        action=Action(row["action"]),
        action_updated=datetime.fromisoformat(row["action_updated"]) if row["action_updated"] else None,
        stopped_reason=row["stopped_reason"],
    )


def _feature_values(feature: Feature) -> tuple[Any, ...]:
    tile = feature.tile
    place = (feature.number, tile.name, tile.epsg, *tile.bounds, tile.width, tile.height)
    outcome = (feature.status, feature.error, feature.delivered, feature.cost_pu, feature.tries, feature.begun)
    return (*place, *outcome, tile.outline, tile.id)


def _feature(row: sqlite3.Row) -> Feature:
    bounds = (row["min_x"], row["min_y"], row["max_x"], row["max_y"])
    return Feature(
        number=row["number"],
        tile=Tile(
            row["name"], row["epsg"], bounds, row["width"], row["height"], outline=row["outline"], id=row["tile_id"]
        ),
        status=row["status"],
        error=row["error"],
        delivered=bool(row["delivered"]),
        cost_pu=row["cost_pu"],
        tries=row["tries"],
        begun=bool(row["begun"]),
    )
