"""A process that takes leases, as another run on this or another machine would: `python lease_holder.py {JSON}`.

With `rounds`, it tries to take one lease a path at the same moments as its rivals, and prints those that it got.
Else it holds the one at `path` until it is killed; it says "held" when it has it, and "lost" when it hears of that.
"""

import json
import os
import sys
import time
from contextlib import ExitStack

import s3fs
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from tasks.errors import LeaseHeld, LeaseLost
from tasks.lease import Lease, held, new_lease


def open_files(s3: dict[str, str] | None) -> AbstractFileSystem:
    """The S3 server with these keys, or the local file system."""
    if s3 is None:
        return LocalFileSystem(auto_mkdir=True)
    client = {"endpoint_url": s3["endpoint_url"]}
    return s3fs.S3FileSystem(key=s3["key"], secret=s3["secret"], client_kwargs=client, use_listings_cache=False)


def compete(files: AbstractFileSystem, paths: list[str], begin: float, lease: Lease, stack: ExitStack) -> list[str]:
    """Try every path at its moment, 0.15 s apart, and keep what is got."""
    got = []
    for number, path in enumerate(paths):
        time.sleep(max(begin + 0.15 * number - time.time(), 0))
        try:
            stack.enter_context(held(files, path, lease))
        except LeaseHeld:
            continue
        got.append(path)
    return got


def hold(files: AbstractFileSystem, path: str, lease: Lease) -> None:
    """Hold a lease until it is lost."""
    with held(files, path, lease) as holding:
        holding.note_request("request-1")
        say("held")
        try:
            while True:
                holding.check()
                time.sleep(0.02)
        except LeaseLost as error:
            say("lost", error)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main() -> None:
    order = json.loads(sys.argv[1])
    files = open_files(order["s3"])
    lease = new_lease("work", "http://127.0.0.1", run_name=order["name"], lease_seconds=order["lease_seconds"])
    if order.get("elsewhere"):  # as a process of another machine, of which nobody here knows whether it lives
        lease = lease.model_copy(update={"process": "another-boot/pid:[1] 1 1"})
    if "rounds" not in order:
        hold(files, order["path"], lease)
        return
    say("ready")
    begin = float(sys.stdin.readline())
    with ExitStack() as stack:
        say(json.dumps(compete(files, order["rounds"], begin, lease, stack)))
        os._exit(0)  # without releasing anything


if __name__ == "__main__":
    main()
