"""The server process's own affairs."""

import socket
from pathlib import Path

from localhub.child import _listener
from localhub.settings import Settings


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """Each accepted connection has TCP_NODELAY; without it every small answer takes 40 ms on loopback."""
    with (
        _listener(Settings(data_dir=tmp_path, archive=tmp_path, port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
