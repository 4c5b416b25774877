"""A small web server with pictures, whole and broken, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.server.questions import encoded
from tests.tiny.prompts import picture


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        file = encoded(picture(1))
        half = file[: len(file) // 2]
        answers = {
            "/whole.png": (file, len(file)),
            "/cut.png": (half, len(half)),
            "/lost.png": (half, len(file)),  # promises more than it sends, then closes
            "/page.png": (b"<html>hello</html>", 18),
        }
        if self.path not in answers:
            self.send_error(404)
            return
        content, length = answers[self.path]
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest's output is no log."""


@contextmanager
def serve_pictures() -> Iterator[str]:
    """The address of a running server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
