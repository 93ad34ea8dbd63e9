"""A server for tests of the benchmarks: `python -m tests.scripted_server PORT SCRIPT`; it answers classes 1 to 5."""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = [{"class": number, "probability": 0.6 - 0.1 * number} for number in range(1, 6)]
SPENDS_S = 0.3


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """A good photo begins as a JPEG does and ends with `whole`."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if data == b"die":
            os._exit(7)
        answer = ANSWER[::-1] if sys.argv[2] == "wrong" else ANSWER
        good = data.endswith(b"whole") or sys.argv[2] == "any"
        body = json.dumps(answer if good else "broken").encode()
        self.send_response(200 if good else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    """Serve as the script says; `stubborn` ignores SIGTERM and has a child in another session, `any` takes all."""
    script = sys.argv[2]
    if script == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    while script == "busy" and time.process_time() < SPENDS_S:
        pass
    if script == "broken":
        sys.exit("no model here")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Answers).serve_forever()


if __name__ == "__main__":
    main()
