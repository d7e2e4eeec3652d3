"""The command line of the explorer: `sgfbias explore`, a page on this machine only."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import os
import socket
import webbrowser
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True)
class ExploreCommand:
    """Open a page of sliders and live pictures: which solution is selected, and what theory predicts."""

    port: int = 2719
    """Port on 127.0.0.1; 0 takes any that is free."""
    browser: bool = True
    """Open the page in a browser."""
    verbose: bool = False
    """Also print what the server logs, and tracebacks."""


def run_explore(command: ExploreCommand) -> int:
    """Serve the page until Ctrl-C, which ends the process with status 0.

    **Raises:** `ValueError` if marimo is missing, or the port is taken or out of range.
    """
    if importlib.util.find_spec("marimo") is None:
        raise ValueError("the explorer needs marimo: pip install 'sgfbias[explore]'")
    if not 0 <= command.port <= 65535:
        raise ValueError(f"--port must be between 0 and 65535, but is {command.port}")
    with _listen(command.port) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        server = _server(url, command)
        with contextlib.suppress(KeyboardInterrupt):  # the server has closed its connections and passes the signal on
            server.run(sockets=[listener])
    print("\nsgfbias: explorer closed", flush=True)
    os._exit(0)  # the pages' sessions leave threads behind that would hold up an ordinary end for minutes


def _listen(port: int) -> socket.socket:
    """A socket on this machine's own address, which others cannot reach."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ValueError(f"port {port} is taken or not allowed: give another, --port, or --port 0 for any that is free") from error
        raise
    return listener


def _server(url: str, command: ExploreCommand) -> Any:
    import marimo
    import uvicorn

    page = Path(__file__).parent / "explore" / "app.py"
    site = marimo.create_asgi_app(quiet=not command.verbose, include_code=False).with_app(path="/", root=str(page)).build()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(f"sgfbias: explorer at {url} (this machine only); Ctrl-C ends it", flush=True)
            if command.browser:
                webbrowser.open(url)

    level = "info" if command.verbose else "error"
    return Server(uvicorn.Config(site, log_level=level, timeout_graceful_shutdown=2))
