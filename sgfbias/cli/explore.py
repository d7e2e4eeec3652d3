"""`sgfbias explore`: serves an interactive page that only this machine can reach."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import os
import socket
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import tyro

from sgfbias.cli import parsed
from sgfbias.study.registry import places

HOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True)
class ExploreCommand:
    """Open a page with sliders and live pictures in the browser.

    The page shows which solution is selected, and what theory predicts.

    Only this machine can reach the page.
    """

    system: Annotated[str | None, tyro.conf.Positional] = None
    """Name of the system to explore; not needed if only one has such a page."""
    port: int = 2719
    """Port of the server at 127.0.0.1; 0 takes any free port."""
    browser: bool = True
    """Open the page in a browser; otherwise only print the address."""
    verbose: bool = False
    """Also print the log of the server, and the traceback of an error."""

    def run(self) -> int:
        """Serve the page until Ctrl-C, which ends the process with exit status 0.

        **Raises:** `ValueError` if marimo is not installed, if there is no such page,
        or if the port is taken or out of range.
        """
        if importlib.util.find_spec("marimo") is None:
            raise ValueError(
                "the explorer needs marimo; install it with pip install 'sgfbias[explore]'"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must be between 0 and 65535, but is {self.port}")
        page = _page(self.system)
        with _listen(self.port) as listener:
            url = f"http://{HOST}:{listener.getsockname()[1]}"
            server = _server(page, url, self)
            # At Ctrl-C the server closes its connections, and then raises this.
            with contextlib.suppress(KeyboardInterrupt):
                server.run(sockets=[listener])
        print("\nsgfbias: the explorer has stopped", flush=True)
        # The sessions of the page leave threads that would delay an ordinary exit for
        # minutes.
        os._exit(0)


def parse(arguments: list[str]) -> ExploreCommand:
    """Parse the options of the command."""
    return parsed(ExploreCommand, "explore", arguments)


def _page(system: str | None) -> Path:
    """Path of the page of a system: `explore/app.py` in the system's folder."""
    pages = {name: folder.parent / "explore" / "app.py" for name, folder in places().items()}
    pages = {name: page for name, page in pages.items() if page.is_file()}
    if system is None and len(pages) == 1:
        return next(iter(pages.values()))
    if system not in pages:
        asked = (
            "name the system to explore"
            if system is None
            else f"there is no page to explore for a system {system!r}"
        )
        known = ", ".join(pages) or "none"
        raise ValueError(f"{asked}: sgfbias explore NAME; the systems with a page are: {known}")
    return pages[system]


def _listen(port: int) -> socket.socket:
    """A socket at the local address 127.0.0.1, which other machines cannot reach."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ValueError(
                f"port {port} is taken or not allowed; give another one with --port, or use "
                "--port 0 for any free port"
            ) from error
        raise
    return listener


def _server(page: Path, url: str, command: ExploreCommand) -> Any:
    import marimo
    import uvicorn

    site = (
        marimo.create_asgi_app(quiet=not command.verbose, include_code=False)
        .with_app(path="/", root=str(page))
        .build()
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print(
                f"sgfbias: the explorer runs at {url} (this machine only); stop it with Ctrl-C",
                flush=True,
            )
            if command.browser:
                webbrowser.open(url)

    level = "info" if command.verbose else "error"
    return Server(uvicorn.Config(site, log_level=level, timeout_graceful_shutdown=2))
