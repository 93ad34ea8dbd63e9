"""Keeps graphs that OpenVINO has compiled in the cache folder, so that the next start does not compile them again.

    CACHE/openvino/GRAPH/KEY/*.blob       what OpenVINO wrote
    CACHE/openvino/GRAPH/KEY/seal.json    the sha256 of each blob, written last

OpenVINO checks only the header of a blob. One flipped byte behind it changes the answers without an error, so a blob
is read only if its sha256 matches. The sha256 is no signature: a file that another user could have written is not read.

A `CacheFile` would not do: OpenVINO maps a blob of its own cache, and takes twice the memory for a blob that is passed
to it (838 MB against 419 for a graph of 418 MB).
"""

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from models.artifact.artifact import sha256

FOLDER = "openvino"
_SEAL = "seal.json"
_KEPT = 6  # of one graph: other precisions, layouts and versions may be used again
_DRAFT = ".draft-"
_ABANDONED_S = 3600.0  # no compilation takes so long: the server was killed
_ROOT = 0
_DIGITS = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """One compiled graph, in a folder of its own."""

    folder: Path

    @classmethod
    def of(cls, cache: Path, graph_sha256: str, subject: tuple[str, ...]) -> "CompiledGraph":
        """The graph as compiled for `subject`: versions, processor, properties and path. One folder per subject."""
        key = hashlib.sha256("\0".join(subject).encode()).hexdigest()
        return cls(cache / FOLDER / graph_sha256[:_DIGITS] / key[:_DIGITS])

    def verify(self) -> bool:
        """Whether the folder may be read. One that is damaged or writable by another user is removed with a warning."""
        if not self.folder.exists():
            return False
        if problem := _problem(self.folder):
            log.warning("%s %s", self.folder, problem)
            self.remove()
        return not problem

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def draft(self) -> Iterator[Path | None]:
        """An empty folder to compile into. At the end of the block it becomes this folder, unless it is still empty.

        None if the cache folder cannot be written.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self.folder.parent))
            _remove_abandoned(draft)
        except OSError as error:
            log.info("compiled graphs are not kept: %s (%s)", self.folder.parent, error.strerror)
            yield None
            return
        try:
            yield draft
            self._keep(draft)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _keep(self, draft: Path) -> None:
        """Write the sha256 of each blob and rename the draft. Remove the oldest compilations of the same graph."""
        try:
            written = [path for path in draft.iterdir() if path.is_file()]
            if not written:
                return
            for path in written:
                path.chmod(0o644)
            draft.chmod(0o755)  # other users may read what root has compiled
            (draft / _SEAL).write_text(json.dumps({path.name: sha256(path) for path in written}), encoding="utf-8")
            draft.rename(self.folder)
            others = [one for one in self.folder.parent.iterdir() if not one.name.startswith(_DRAFT)]
            for one in sorted(others, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
                shutil.rmtree(one, ignore_errors=True)
        except OSError as error:  # another server was first, or the disk is full
            log.debug("%s is not kept: %s", self.folder, error)


def _problem(folder: Path) -> str:
    """Why the folder may not be read, or ''."""
    try:
        found = folder.stat()
        if found.st_uid not in (os.geteuid(), _ROOT) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "can be written by another user and is not read; name a folder of your own with --cache"
        sealed = json.loads((folder / _SEAL).read_bytes())
        if sealed and all(sha256(folder / name) == digest for name, digest in sealed.items()):
            return ""
    except (OSError, ValueError, AttributeError) as error:
        log.debug("%s cannot be read: %s", folder, error)
    return "is damaged or cannot be read; it is compiled again"


def _remove_abandoned(draft: Path) -> None:
    """Remove drafts that are much older than this one: the servers that made them were killed."""
    now = draft.stat().st_mtime
    for one in draft.parent.glob(f"{_DRAFT}*"):
        with suppress(FileNotFoundError):  # another server has finished it
            if now - one.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(one, ignore_errors=True)
