"""Graphs as OpenVINO has compiled them, kept in the cache folder, so that the next start need not compile.

    CACHE/openvino/GRAPH/KEY/*.blob       what OpenVINO wrote
    CACHE/openvino/GRAPH/KEY/seal.json    the sha256 of each, written last

OpenVINO checks a blob's head alone: one flipped byte behind it changes the answers, and nothing is said. So nothing is
read that does not fit its seal. A folder is made under another name and renamed when it is whole; of two servers that
make the same one the second keeps nothing. A seal is no signature: what another user could have written is not read.
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
_KEPT = 6  # for one graph: precisions, layouts and versions that somebody goes back to
_DRAFT = ".draft-"
_ABANDONED_S = 3600.0  # nothing is compiled for so long: its server was killed
_ROOT = 0
_DIGITS = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compiled:
    """The place of one compiled graph."""

    folder: Path

    @classmethod
    def of(cls, cache: Path, graph_sha256: str, subject: tuple[str, ...]) -> "Compiled":
        """That of a graph compiled under the conditions of `subject`: versions, processor, properties, where it lies.

        With another value in any of these it is another place.
        """
        key = hashlib.sha256("\0".join(subject).encode()).hexdigest()
        return cls(cache / FOLDER / graph_sha256[:_DIGITS] / key[:_DIGITS])

    def is_whole(self) -> bool:
        """Whether every file is as this user or root has sealed it; what is not is removed, and said."""
        try:
            if not _is_ours(self.folder):
                advice = "is not read; name a folder of your own with --cache"
                log.warning("%s can be written by another user and %s", self.folder, advice)
                self.discard()
                return False
            sealed = json.loads((self.folder / _SEAL).read_bytes())
            whole = bool(sealed) and all(sha256(self.folder / name) == digest for name, digest in sealed.items())
        except FileNotFoundError:
            if not self.folder.exists():
                return False
            whole = False
        except (OSError, ValueError, AttributeError) as error:
            log.debug("%s cannot be read: %s", self.folder, error)
            whole = False
        if not whole:
            log.warning("%s is damaged or cannot be read; it is made again", self.folder)
            self.discard()
        return whole

    def discard(self) -> None:
        """Remove it, as far as that is allowed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def making(self) -> Iterator[Path | None]:
        """An empty folder to compile into, put in its place at the end of the block where something was written.

        None where the cache folder cannot be written: then nothing is kept.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self.folder.parent))
            _clear(draft)
        except OSError as error:
            log.info("compiled graphs are not kept: %s (%s)", self.folder.parent, error.strerror)
            yield None
            return
        try:
            yield draft
            self._put(draft)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _put(self, draft: Path) -> None:
        """Seal it and rename it; the oldest of the same graph leave."""
        try:
            written = [path for path in draft.iterdir() if path.is_file()]
            if not written:
                return
            for path in written:
                path.chmod(0o644)
            draft.chmod(0o755)  # other users may read what root has made
            (draft / _SEAL).write_text(json.dumps({path.name: sha256(path) for path in written}), encoding="utf-8")
            draft.rename(self.folder)
            others = [one for one in self.folder.parent.iterdir() if not one.name.startswith(_DRAFT)]
            for one in sorted(others, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
                shutil.rmtree(one, ignore_errors=True)
        except OSError as error:  # another server was first, or the disk is full
            log.debug("%s is not kept: %s", self.folder, error)


def _is_ours(folder: Path) -> bool:
    """Whether nobody but this user and root could have put something there."""
    found = folder.stat()
    return found.st_uid in (os.geteuid(), _ROOT) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _clear(draft: Path) -> None:
    """Remove drafts that are much older than this one: who made them was killed, and nobody else will."""
    now = draft.stat().st_mtime
    for one in draft.parent.glob(f"{_DRAFT}*"):
        with suppress(FileNotFoundError):  # another server was done with it
            if now - one.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(one, ignore_errors=True)
