"""An object store in a process of its own, and a server in front of it that passes requests on and makes faults."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("500", "drop", "slow", "short")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def moto(log: str) -> Iterator[int]:
    """The port of moto's server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(log, "wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and server.poll() is None:
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


class Faulty(ThreadingHTTPServer):
    """Passes requests on to a port of this machine.

    Attributes:
        fault: of requests to read something whose path holds a word, (word, kind); None for no fault.
        lasts: whether it goes on.
        seconds: that a slow answer takes.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = port
        self.fault: tuple[str, str] | None = None
        self.lasts: Callable[[], bool] = lambda: True
        self.seconds = 3.0

    def fault_of(self, path: str) -> str | None:
        if self.fault is None or self.fault[0] not in path or not self.lasts():
            return None
        return self.fault[1]

    @contextmanager
    def running(self) -> Iterator["Faulty"]:
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def _pass_on(self) -> None:
        fault = self.server.fault_of(self.path) if self.command == "GET" else None
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "slow":
            time.sleep(self.server.seconds)
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "500":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        store = http.client.HTTPConnection("127.0.0.1", self.server.port)
        store.request(self.command, self.path, body, dict(self.headers))
        answer = store.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if fault == "short" else content)
        if fault == "short":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        store.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815  so the library calls them

    def handle(self) -> None:
        with suppress(OSError):  # the client is gone, or was dropped
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


def credentials(port: int) -> dict[str, str]:
    """Environment that leads to a store on a port of this machine."""
    settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**os.environ, **settings, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
