"""A host of files on a free port of this machine, whose answers a test writes."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


def reply(body: bytes = b"", status: int = 200, **headers: object) -> Answer:
    """A reply of HTTP with these headers."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), str(value))
        request.end_headers()
        request.wfile.write(body)

    return answer


def whole(body: bytes) -> Answer:
    """The body, as a good server sends it."""
    return reply(body, Content_Length=len(body))


def failed(code: int) -> Answer:
    """An error of HTTP."""
    return lambda request: request.send_error(code)


def not_http(request: BaseHTTPRequestHandler) -> None:
    """The greeting of another protocol."""
    request.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up: they are part of the tests."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing."""


class Host:
    """A download host on a free port of this machine; `answers` says what each path gets, and `asked` what came."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.asked.append(handler.path)
                self.answers.get(handler.path, failed(404))(handler)

            def do_POST(handler) -> None:  # noqa: N805
                handler.rfile.read(int(handler.headers["Content-Length"]))
                handler.do_GET()

            def log_message(handler, *arguments: object) -> None:  # noqa: N805
                """Nothing."""

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}/models/"

    def serve(self, name: str, answer: Answer) -> str:
        """Answer for that file; its address."""
        self.answers[f"/models/{name}"] = answer
        return self.url + name

    def close(self) -> None:
        """Stop, and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
