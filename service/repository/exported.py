"""The models of the catalog and of the folder of artifacts: names, versions, and what can be read of each."""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.artifact.artifact import (
    Artifact,
    ArtifactError,
    Manifest,
    NotExportedError,
    exported_names,
    exported_versions,
    load,
    newest_whole,
    read_manifest,
    root_of,
)
from models.artifact.measured import read_measured
from models.catalog import Architecture, Catalog, UnknownModelError
from service.common.errors import ModelNotFound
from service.common.model_info import ModelState
from service.common.types import ENSEMBLE_PREFIX
from service.repository.loaded_model import LoadedModel
from service.repository.model_folders import ModelFolders

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of the catalog, an exported model, or both. `architecture` is None if it is not in the catalog.

    `exported` is the version that serves or was asked for, else the newest that can be read, and its manifest. `damage`
    says why newer ones cannot be read. `versions` are all that are exported.
    """

    name: str
    state: ModelState
    architecture: Architecture | None
    exported: tuple[int, Manifest] | None
    loaded: LoadedModel | None
    damage: str | None = None
    versions: tuple[int, ...] = ()


class ExportedModels:
    """Reads the artifacts under `root`, and those of `folders`, which come first.

    Its methods are called on a thread, because the disk may hang.
    """

    def __init__(self, root: Path, catalog: Catalog, folders: ModelFolders | None = None) -> None:
        self.root = root
        self.catalog = catalog
        self.folders = folders or ModelFolders({})

    def root_of(self, name: str) -> Path:
        """The folder of artifacts that has the model."""
        return self.folders.root_of(name) or root_of(self.root, name)

    def names(self) -> list[str]:
        """The sorted names of the catalog and of other exported models."""
        return sorted({*self.catalog.names(), *exported_names(self.root), *self.folders.names})

    def versions(self, name: str) -> tuple[int, ...]:
        """The exported versions of the model in ascending order."""
        return tuple(exported_versions(self.root_of(name), name))

    def signature(self, name: str) -> Hashable:
        """The names, sizes and times of the files of every version: they differ once a version has changed."""
        folder = self.root_of(name) / name
        folders = [folder / str(number) for number in self.versions(name)]
        files = [path for version in folders for path in sorted(version.iterdir()) if path.exists()]  # no broken link
        return tuple((str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in files)

    def check_known(self, name: str, version: int | None) -> None:
        """Raise ModelNotFound if no model has that name, or the model not that version."""
        if name.startswith(ENSEMBLE_PREFIX):
            raise ModelNotFound("an ensemble is made at each request and has no page; ask for its members one by one")
        if name not in self.catalog and name not in (known := self.names()):
            raise ModelNotFound(str(UnknownModelError(name, known)))
        if version is not None and version not in (there := self.versions(name)):
            those = ", ".join(map(str, there)) or "none; it is not exported yet"
            raise ModelNotFound(f"{name} has no version {version}; the exported versions are: {those}")

    def read(self, name: str, version: int | None) -> Artifact:
        """That version, or the newest whole one. Raises ModelNotFound or ArtifactError."""
        self.check_known(name, version)
        if version is not None:
            return load(self.root_of(name), name, version)
        artifact, damaged = newest_whole(self.root_of(name), name, load)
        return replace(artifact, damaged_newer=damaged)

    def entry(
        self, name: str, version: int | None, loaded: LoadedModel | None, loading: bool, failure: str | None
    ) -> ModelEntry:
        """What is known of the model, in that version or in the one that serves.

        `loaded` is None if it is not loaded. `failure` says why the last load of it failed.
        """
        exported: tuple[int, Manifest] | None = None
        damage: str | None = None
        if loaded is not None:
            exported = (loaded.artifact.version, _up_to_date(loaded.artifact))
            damage = damage_of(loaded.artifact.version, loaded.artifact.damaged_newer)
            if failure is not None:
                damage = f"version {loaded.artifact.version} serves, because another cannot: {failure}"
            state = ModelState.READY if loaded.healthy else ModelState.FAILING
        else:
            try:
                if version is None:
                    newest, newer = newest_whole(self.root_of(name), name, read_manifest)
                    exported, damage = newest, damage_of(newest[0], newer)
                else:
                    exported = read_manifest(self.root_of(name), name, version)
                state = ModelState.LOADING if loading else ModelState.EXPORTED
            except ArtifactError as error:
                damage = None if isinstance(error, NotExportedError) else str(error)
                state = ModelState.NOT_EXPORTED
            if damage is not None:
                log.warning("%s", damage)
        return ModelEntry(name, state, self.catalog.get(name), exported, loaded, damage, self.versions(name))


def damage_of(version: int, newer: Sequence[str]) -> str | None:
    """That this version serves in place of the newer ones, which have these damages; None if there are none."""
    return f"version {version} serves, because a newer one is damaged: {'; '.join(newer)}" if newer else None


def _up_to_date(artifact: Artifact) -> Manifest:
    """The manifest, with what other processes have measured since the model was loaded."""
    measured = read_measured(artifact.manifest_file)
    return artifact.manifest if measured is None else artifact.manifest.model_copy(update={"measured": measured})
