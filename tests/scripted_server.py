"""A server for tests of the benchmarks: `python -m tests.scripted_server PORT SCRIPT`; it answers classes 1 to 5."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.servers import Body, ServerSpec

PHOTO = b"\xff\xd8 a photo, whole"

_ANSWER = [{"class": number, "probability": 0.6 - 0.1 * number} for number in range(1, 6)]


def scripted(name: str, script: str = "good") -> ServerSpec:
    """A server that behaves as the script says.

    - `good` takes a body for a photo that ends with `whole`, `any` takes every body, `unready` takes none;
    - `wrong` answers other classes, `broken` does not start;
    - `stubborn` ignores SIGTERM, and has a child in another session;
    - `busy` has a thread that computes 0.3 s before it answers.
    """
    return ServerSpec(name, (sys.executable, "-m", "tests.scripted_server", "{port}", script), body=Body.RAW)


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        data, script = self.rfile.read(int(self.headers["Content-Length"])), sys.argv[2]
        if data == b"die":
            os._exit(7)
        good = script == "any" or (data.endswith(b"whole") and script != "unready")
        answer = _ANSWER[::-1] if script == "wrong" else _ANSWER
        body = json.dumps(answer if good else "broken").encode()
        self.send_response(200 if good else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _compute() -> None:
    while time.thread_time() < 0.3:
        pass


def main() -> None:
    """Serve as the script says."""
    script = sys.argv[2]
    if script == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    if script == "busy":
        thread = threading.Thread(target=_compute)
        thread.start()
        thread.join()
    if script == "broken":
        sys.exit("no model here")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Answers).serve_forever()


if __name__ == "__main__":
    main()
