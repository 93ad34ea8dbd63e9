"""Nothing leaves the machine: no command looks up a name, and the runtimes keep no data for their makers."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from export.gate_images import PHOTOS
from tests.onnx_models import classifier, recipe, saved

pytestmark = pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("cc")), reason="needs Linux and cc")

SOURCE = Path(__file__).with_name("lookups.c")
TOPFIVE = "from service.cli.main import main; main()"
PHOTO = PHOTOS / "bee.jpeg"
ORT = ("--runtime", "onnxruntime")


@dataclass(frozen=True)
class Observed:
    """A place for commands that may look up no name."""

    library: Path
    folder: Path

    def start(self, script: str, *words: object, **variables: str) -> subprocess.Popen[str]:
        """Start Python with that script, in a process whose attempts to reach another machine fail."""
        own = {"LD_PRELOAD": self.library, "LOOKUPS": self.folder / "lookups", "XDG_CACHE_HOME": self.folder / "home"}
        environment = {"PATH": os.environ["PATH"]}  # ONNX Runtime reports less where CI is set
        command = [sys.executable, "-c", script, *map(str, words)]
        environment |= {name: str(value) for name, value in own.items()} | {"HOME": str(self.folder)} | variables
        return subprocess.Popen(command, env=environment, cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def run(self, script: str, *words: object, **variables: str) -> None:
        """Run it to its end, which is a good one."""
        process = self.start(script, *words, **variables)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error

    @property
    def lookups(self) -> list[str]:
        """The names that were looked up."""
        noted = self.folder / "lookups"
        return noted.read_text().splitlines() if noted.exists() else []

    @property
    def kept(self) -> list[str]:
        """The folders of makers of runtimes in the user's home and cache."""
        found = (*self.folder.glob("home/*"), *self.folder.glob("intel*"), *self.folder.glob(".*/*"))
        return [path.name for path in found if path.name != "topfive"]


@pytest.fixture
def observed(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Observed:
    """A place with the library, which is compiled once for each process of the tests."""
    library = tmp_path_factory.getbasetemp() / "lookups.so"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return Observed(library, tmp_path)


def test_attempts_are_seen(observed: Observed) -> None:
    """The control: look-ups of Python are noted, and so is what ONNX Runtime keeps where it may."""
    script = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.create_connection(('a.invalid', 80))"
    observed.run(script)
    observed.run("import onnxruntime", ORT_DISABLE_TELEMETRY="0")

    assert "a.invalid" in observed.lookups
    assert observed.kept == ["Microsoft"]


@pytest.mark.parametrize(
    "words",
    [
        ("predict", PHOTO, "--model", "tiny", *ORT),
        ("predict", PHOTO, "--model", "tiny", "--runtime", "openvino"),
        ("compare", PHOTO, "--model", "tiny", *ORT),
        ("classify", PHOTO, "--model", "tiny", *ORT, "--out", "rows.csv"),
        ("evaluate", "list.csv", "--model", "tiny", *ORT, "--out", "figures"),
        ("tune", "tiny", "--seconds", "1", "--cpus", "1"),
        ("doctor", "--models", "tiny", "--port", "0", "--grpc-port", "0", *ORT),
        ("export", "tiny", "--weights", "untrained"),
        ("import", "own.onnx", "--name", "own", "--recipe", "recipe.toml"),
    ],
    ids=lambda words: f"{words[0]}",
)
def test_commands(observed: Observed, artifacts: Path, words: tuple[object, ...]) -> None:
    """A command that uses a runtime looks up no name, and nothing is kept for the maker of the runtime."""
    (observed.folder / "list.csv").write_text(f"path,class_id\n{PHOTO},309\n", encoding="utf-8")
    saved(classifier(), observed.folder, "own.onnx")
    recipe(observed.folder)
    observed.run(TOPFIVE, *words, "--artifacts", artifacts)

    assert (observed.lookups, observed.kept) == ([], [])


def test_serve(observed: Observed, artifacts: Path) -> None:
    """A server looks up no name from its start to its end."""
    options = ("--models", "tiny", "--artifacts", artifacts, "--port", "0", "--grpc-port", "0", *ORT)
    process = observed.start(TOPFIVE, "serve", *options)
    assert process.stderr is not None
    with process.stderr as log:
        ready = any(": ready: open http" in line for line in log)
        process.send_signal(signal.SIGTERM)
        log.read()

    assert (ready, process.wait(30)) == (True, 0)
    assert (observed.lookups, observed.kept) == ([], [])
