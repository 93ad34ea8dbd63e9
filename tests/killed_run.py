"""`python -m tests.killed_run LOG AFTER WORDS...`: a command whose engine kills the process after so many images."""

import signal
import sys
from pathlib import Path

from tests.command_line import SignallingEngine, topfive

if __name__ == "__main__":
    log, after, *words = sys.argv[1:]
    topfive(*words, engine=SignallingEngine(Path(log), signal.SIGKILL, int(after)))
