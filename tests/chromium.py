"""A page in headless Chromium, controlled through the DevTools protocol over a
WebSocket. It needs nothing but Chromium.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def program():
    """The path of Chromium, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Wire:
    """The client's end of a WebSocket (RFC 6455), for whole text messages."""

    def __init__(self, url, *, seconds=60):
        place = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((place.hostname, place.port), timeout=seconds)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        assert b" 101 " in self.file.readline()
        while self.file.readline().strip():
            pass

    def send(self, text):
        # A client masks what it sends; a mask of zeros changes nothing.
        body = text.encode()
        length = (
            struct.pack("!B", 0x80 | len(body))
            if len(body) < 126
            else struct.pack("!BH", 0x80 | 126, len(body))
            if len(body) < 2**16
            else struct.pack("!BQ", 0x80 | 127, len(body))
        )
        self.socket.sendall(b"\x81" + length + bytes(4) + body)

    def recv(self):
        """The next message; frames that are no text, such as pings, are passed over."""
        message = b""
        while True:
            first, length = self.file.read(2)
            if length in (126, 127):
                length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
            body = self.file.read(length)
            if first & 0x0F < 3:
                message += body
                if first & 0x80:
                    return message.decode()

    def close(self):
        self.file.close()
        self.socket.close()


class Page:
    """One tab. `evaluate` runs JavaScript, `press` presses a key, `screenshot` saves a
    picture, and `errors` collects the errors of the console and uncaught exceptions.
    """

    def __init__(self, wire):
        self.wire, self.numbers, self.errors = wire, itertools.count(1), []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        self.wire.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.wire.recv())
            self._listen(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _listen(self, message):
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(
                str(params["exceptionDetails"].get("exception", params["exceptionDetails"]))
            )
        if message.get("method") == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "assert",
        ):
            self.errors.append(
                str([arg.get("value", arg.get("description")) for arg in params["args"]])
            )
        if message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def evaluate(self, script):
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script, *, seconds):
        """The value of the script, as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.evaluate(script)
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError(
            f"not true after {seconds} s: {script}; console {self.errors}; page: "
            f"{self.evaluate('document.body.innerText')[:2000]}"
        )

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, target):
        Path(target).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def open_page(url, *, size=(1600, 1300)):
    """A headless Chromium with one tab at `url`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-port=0",
            "--disable-dev-shm-usage",
        ]
        command = [
            program(),
            *options,
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            "about:blank",
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
            start_new_session=True,
        )
        try:
            place = Path(profile) / "DevToolsActivePort"
            end = time.monotonic() + 60
            while not (place.exists() and place.read_text().count("\n")):
                assert time.monotonic() < end, "Chromium did not start"
                time.sleep(0.1)
            port = place.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                tab = next(t for t in json.load(answer) if t["type"] == "page")
            with contextlib.closing(Wire(tab["webSocketDebuggerUrl"])) as wire:
                page = Page(wire)
                page.call("Page.navigate", url=url)
                # Before that the elements of the page are not there.
                page.wait(
                    f"(location.href !== 'about:blank' || {json.dumps(url)} === 'about:blank') "
                    "&& document.readyState !== 'loading'",
                    seconds=60,
                )
                yield page
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
