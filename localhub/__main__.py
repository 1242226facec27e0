"""The child process of `localhub.server.LocalHub`; it takes its settings from standard input.

A module of its own, and this small, because worker processes do not import a package's `__main__` again.
"""

from localhub.pool import start_fork_server

if __name__ == "__main__":
    start_fork_server()
    from localhub.child import serve_child  # the fork server imports meanwhile

    serve_child()
