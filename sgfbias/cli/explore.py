"""`sgfbias explore`: serves an interactive page that only this machine can reach, or
exports one that needs no server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.server
import importlib
import importlib.util
import json
import socket
import sys
import traceback
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import tyro

from sgfbias.cli import parsed
from sgfbias.study.registry import PACKAGE, places

HOST = "127.0.0.1"
LONGEST = 10_000  # bytes of a question to the server


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
    export: Path | None = None
    """Write a page to this file instead, for example page.html. It has the pictures of
    a grid of values inside and needs neither a server nor Python.
    """
    verbose: bool = False
    """Also print the log of the server, and the traceback of an error."""

    def run(self) -> int:
        """Serve the page until Ctrl-C, which ends the process with exit status 0; or
        write the exported page.

        **Raises:** `ValueError` if there is no such page, or if the port is taken or
        out of range; `OSError` if the file of the exported page cannot be written.
        """
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must be between 0 and 65535, but is {self.port}")
        app = _app(self.system)
        if self.export is not None:
            return _export(app, self.export)
        with _listen(self.port) as listener:
            server = _server(listener, app, verbose=self.verbose)
            url = f"http://{HOST}:{listener.getsockname()[1]}"
            print(
                f"sgfbias: the explorer runs at {url} (this machine only); stop it with Ctrl-C",
                flush=True,
            )
            if self.browser:
                webbrowser.open(url)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
        print("\nsgfbias: the explorer has stopped", flush=True)
        return 0


def parse(arguments: list[str]) -> ExploreCommand:
    """Parse the options of the command."""
    return parsed(ExploreCommand, "explore", arguments)


def _app(system: str | None) -> Any:
    """The module `explore.app` of a system, with the functions `live`, `answer` and
    `export`.
    """
    known = {name: folder.parent / "explore" / "app.py" for name, folder in places().items()}
    known = {name: path for name, path in known.items() if path.is_file()}
    if system is None and len(known) == 1:
        system = next(iter(known))
    if system is None or system not in known:
        asked = (
            "name the system to explore"
            if system is None
            else f"there is no page to explore for a system {system!r}"
        )
        raise ValueError(
            f"{asked}: sgfbias explore NAME; the systems with a page are: "
            f"{', '.join(known) or 'none'}"
        )
    path = known[system]
    if path.parents[2] == PACKAGE:
        return importlib.import_module(f"sgfbias.{system}.explore.app")
    spec = importlib.util.spec_from_file_location(f"{system}_explore", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _export(app: Any, target: Path) -> int:
    """Write the exported page, after a try whether the file can be written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.write_text("")
    try:
        part.write_text(app.export(), encoding="utf-8")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    print(f"page: {target.absolute().as_uri()}")
    return 0


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


def _server(listener: socket.socket, app: Any, *, verbose: bool) -> http.server.HTTPServer:
    """A server of the page at `/`, and of pictures at `/picture`, to which the page
    posts the values of its controls.
    """
    port = listener.getsockname()[1]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._reply(200, "text/html; charset=utf-8", app.live())
            else:
                self._reply(404, "text/plain", "there is only the page /")

        def do_POST(self) -> None:
            # A page of another site that finds this port must not make us compute.
            origin = self.headers.get("Origin")
            if self.path != "/picture" or origin not in (None, f"http://{self.headers['Host']}"):
                return self._reply(403, "text/plain", "only the page asks for pictures")
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if not 0 < length <= LONGEST:
                    raise ValueError(f"the question has {length} bytes")
                values = json.loads(self.rfile.read(length))
                if not isinstance(values, dict):
                    raise ValueError(f"the question must be an object, but is {values!r}")
                found = app.answer(values)
            except ValueError as error:
                found = {"error": str(error)}
            except Exception as error:  # the page says it, and goes on
                traceback.print_exc() if verbose else print(f"sgfbias: {error}", file=sys.stderr)
                found = {"error": f"{type(error).__name__}: {error}"}
            self._reply(200, "application/json", json.dumps(found, allow_nan=False))

        def _reply(self, status: int, kind: str, text: str) -> None:
            hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
            if self.headers.get("Host") not in hosts:
                status, kind, text = 403, "text/plain", "only this machine is answered"
            body = text.encode()
            # A browser may leave before its answer is there.
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *words: Any) -> None:
            if verbose:
                super().log_message(format, *words)

    server = http.server.ThreadingHTTPServer((HOST, port), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    return server
