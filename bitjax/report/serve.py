"""Serves one page to this machine's browsers, which load it again whenever it has changed.

The server listens on the loopback address alone. It answers at one path that nobody can foresee,
since other users of the machine reach that address, too. It answers requests whose `Host` is the
loopback's alone: a page of another name that is led to this address (DNS rebinding) gets nothing.
"""

import base64
import hashlib
import html
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socketserver import TCPServer
from typing import cast
from urllib.parse import urlsplit

from bitjax.files.reading import reason_of

_HOSTS = ("127.0.0.1", "localhost", "::1")  # with any port: it may have been forwarded
_EVERY = 1.0  # seconds in which one look at the runs serves all that ask
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


_NOTICE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
<script>{reload}</script>
</body>
</html>
"""


class PageServer(ThreadingHTTPServer):
    """A server of the page that `make` gives; `state` is anything that changes when it does."""

    daemon_threads = True

    def __init__(self, make: Callable[[str], str], state: Callable[[], object], port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self._make, self._state = make, state
        self._lock = threading.Lock()
        self._looked = -_EVERY
        self._page = self._version = ""
        self.path = f"/{secrets.token_urlsafe(12)}/"

    @property
    def address(self) -> str:
        """What a browser is given."""
        return f"http://127.0.0.1:{self.server_address[1]}{self.path}"

    def server_bind(self) -> None:
        """Binds the address, without asking the network for its name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request, client_address) -> None:
        """Says in a line what went wrong, of a browser that went away nothing."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            print(f"error: the page was not served ({reason_of(error)})", file=sys.stderr)

    def now(self) -> tuple[str, str]:
        """The page as it is now, and its version."""
        with self._lock:
            if time.monotonic() - self._looked >= _EVERY:
                version = hashlib.sha256(repr(self._state()).encode()).hexdigest()[:16]
                if version != self._version:
                    self._page, self._version = self._make(reload_script(version)), version
                self._looked = time.monotonic()
            return self._page, self._version


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds, for a client that begins a request and goes away
    server_version, sys_version = "bitjax", ""

    def do_GET(self) -> None:
        """Gives the page or its version, and nothing else."""
        server = cast(PageServer, self.server)
        found = self.headers.get_all("Host") or []
        if len(found) != 1 or _host(found[0]) not in _HOSTS:
            self.send_error(403, "this page is for this machine's browsers")
        elif self.path == server.path:
            self._answer(server.now()[0], "text/html; charset=utf-8")
        elif self.path == f"{server.path}version":
            self._answer(server.now()[1], "text/plain; charset=utf-8")
        else:
            self.send_error(404)

    def _answer(self, text: str, kind: str) -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(200)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args) -> None:
        """Says nothing: a browser asks every two seconds."""


def _host(text: str) -> str | None:
    try:
        return urlsplit(f"//{text}").hostname
    except ValueError:
        return None


def reload_script(version: str) -> str:
    """The script of a page that asks whether there is another version of it."""
    text = (resources.files("bitjax.report") / "page" / "reload.js").read_text("utf-8")
    return f'"use strict";\nconst version = {json.dumps(version)};\n{text}'


def notice(title: str, text: str, reload: str) -> str:
    """A page that has no runs to show yet."""
    digest = base64.b64encode(hashlib.sha256(reload.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; connect-src 'self'"
    return _NOTICE.format(
        policy=policy, title=html.escape(title), text=html.escape(text), reload=reload
    )
