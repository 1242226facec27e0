"""Prefect's temporary server in a child process: ``python -m flows.temporary_server``, see :mod:`flows.server`.

It takes neither Ctrl-C nor SIGTERM, which a run's whole process group may get, because the run needs it to the end. It
ends when its input does: with the process that started it, whatever becomes of that.
"""

import gc
import signal
import socket
import sys
import threading


def serve() -> None:
    """Print the address, and serve until the end of the input."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    gc.disable()  # what is imported stays: there is nothing to collect
    with socket.create_server(("127.0.0.1", 0)) as listener:  # who asks before all is ready waits for the answer
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)  # noqa: T201 - the parent reads it
        import uvicorn  # noqa: PLC0415 - these take seconds, in which the parent has other things to do
        from prefect.server.api.server import create_app  # noqa: PLC0415

        application = create_app(ephemeral=True, final=True)
        gc.freeze()
        gc.enable()
        server = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="on"))

        def stop_at_end_of_input() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=stop_at_end_of_input, daemon=True).start()
        server.run([listener])


if __name__ == "__main__":
    serve()
