"""A server on this machine, for what asks one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Handler(BaseHTTPRequestHandler):
    def reply(self) -> None:
        """What is done when somebody asks."""
        raise NotImplementedError

    def asked(self) -> Any:
        """The JSON that came with it."""
        return json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")

    def answer(self, answer: Any, status: int = 200, **headers: str) -> None:
        """With JSON, or with bytes that are meant to be some."""
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with suppress(OSError):  # who asked may have gone
            self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply()

    def do_POST(self) -> None:
        self.reply()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    # With the five of Python's own, the sixth who asks at a time tries again after a second.
    request_queue_size = 128

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(handler: type[Handler]) -> Iterator[Server]:
    """A server whose ``handler`` answers, until the block ends."""
    with Server(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def chat(text: Any) -> dict[str, Any]:
    """What a server of chat models answers."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
