"""Models that lie in folders of their own: links to them, under the names that they are served by."""

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from models.artifact.artifact import GRAPH, MANIFEST
from service.common.errors import NotReady

_RECIPE = "recipe.toml"
_LABELS = ("labels.csv", "labels.txt")
_IMPORT = "from service.cli.main import main; main()"  # in a process of its own, whose memory comes back

log = logging.getLogger(__name__)


class ModelFolders:
    """Links each folder of `--model NAME=FOLDER` into a temporary folder of artifacts, or imports the file in it."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._links: TemporaryDirectory[str] | None = None
        self._importing: Process | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._folders)

    def root_of(self, name: str) -> Path | None:
        """The folder of artifacts that has the link of the model; None if it lies in no folder of its own."""
        return Path(self._links.name) if self._links is not None and name in self._folders else None

    async def link(self) -> None:
        """Make the links. Raises NotReady, which names the folder and what it lacks."""
        if not self._folders or self._links is not None:
            return
        try:
            self._links = TemporaryDirectory(prefix="topfive-models-", ignore_cleanup_errors=True)
            root = Path(self._links.name)
            for name, folder in self._folders.items():
                if not await asyncio.to_thread(_link, name, folder, root):
                    await self._import(name, folder, root)
        except OSError as error:
            raise NotReady(f"a model of --model cannot be linked in a temporary folder: {error}") from error

    def close(self) -> None:
        """Remove the links, and end an import."""
        if self._importing is not None and self._importing.returncode is None:
            self._importing.kill()
        if self._links is not None:
            self._links.cleanup()
            self._links = None

    async def _import(self, name: str, folder: Path, root: Path) -> None:
        files = [str(folder / GRAPH), "--recipe", str(folder / _RECIPE), "--name", name, "--artifacts", str(root)]
        labels = [f"--labels={folder / file}" for file in _LABELS if (folder / file).is_file()][:1]
        self._importing = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _IMPORT, "import", *files, *labels, stdout=PIPE, stderr=STDOUT
        )
        if self._links is None:  # closed meanwhile
            self._importing.kill()
        log.info("importing %s as %s", folder / GRAPH, name)
        output, _ = await self._importing.communicate()
        said = " ".join(output.decode(errors="replace").split())
        if self._importing.returncode:
            raise NotReady(f"{folder / GRAPH} cannot be imported for --model {name}: {said}")
        log.info("%s", said)


def _link(name: str, folder: Path, root: Path) -> bool:
    """Link the folder as the model of that name. Returns False if it has an ONNX file to import. Raises NotReady."""
    folder = folder.absolute()
    if (folder / MANIFEST).is_file():
        (root / name).mkdir()
        (root / name / (folder.name if folder.name.isdecimal() else "1")).symlink_to(folder)
        return True
    if trees := _trees(folder, name):
        if len(trees) > 1:
            names = ", ".join(tree.name for tree in trees)
            raise NotReady(f"--model {name}={folder} has the models {names}; name the folder of one")
        (root / name).symlink_to(trees[0])
        return True
    if (folder / GRAPH).is_file() and (folder / _RECIPE).is_file():
        return False
    raise NotReady(
        f"--model {name}={folder} has no artifact ({MANIFEST} in it, in VERSION/ or in NAME/VERSION/), "
        f"and not both of {GRAPH} and {_RECIPE} to import"
    )


def _trees(folder: Path, name: str) -> list[Path]:
    """The folder if it has versions, or else the folders in it that have, of which that of `name` counts alone."""
    for pattern in ("*", "*/*"):
        found = [path.parent for path in sorted(folder.glob(f"{pattern}/{MANIFEST}")) if path.parent.name.isdecimal()]
        if found:
            trees = list(dict.fromkeys(version.parent for version in found))
            return [tree for tree in trees if tree.name == name] or trees
    return []
