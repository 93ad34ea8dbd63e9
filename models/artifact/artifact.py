"""The artifact: the folder that `export` writes and `service` reads, and the only contract between the two.

    ARTIFACTS/NAME/VERSION/
        manifest.json       what the model is, and the sha256 of every other file
        model.onnx          the graph contract: uint8 [N, S, S, 3] RGB in, float32 [N, C] probabilities out
        labels.csv          a row per class
        layers.json         a row per layer of the network
        weights.safetensors the weights, for the torch engine; an imported model has none
        reference.npz       images and the original's answers, to check an engine on the machine that runs it
        engines/            engines that are built from the graph later; see `models.artifact.engine_plan`

VERSION is a whole number; the highest that is whole is served. A link to NAME or VERSION serves under the name of the
link.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from models.artifact.files import sync
from models.artifact.measured import MeasuredAccuracy
from models.catalog import InputSpec
from models.labels import Label, read_labels

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
LABELS = "labels.csv"
LAYERS = "layers.json"
WEIGHTS = "weights.safetensors"

PACKAGED = Path(__file__).parent.parent / "data" / "artifacts"
"""The artifacts that come with topfive. Each serves where no version of that model is exported."""

IMPORTED = "imported"
"""The family of a model that was imported from an ONNX file; that file is its reference instead of PyTorch."""


X = TypeVar("X")


class ArtifactError(Exception):
    """The folder is not a complete artifact; the message names the file and the remedy."""


def artifacts_option(root: Path) -> str:
    """The option of an export to `root`; an export never writes into PACKAGED."""
    return "" if root == PACKAGED else f" --artifacts {root}"


def _remedy(root: Path, name: str, family: str = "") -> str:
    if _is_linked(root / name):
        return "put a whole artifact there"
    if family == IMPORTED:
        return f"run: topfive import FILE.onnx --name {name} --recipe recipe.toml --artifacts {root}"
    return f"run: topfive export {name}{artifacts_option(root)}"


def _is_linked(folder: Path) -> bool:
    """Whether the folder of a model, or a version in it, is a link to an artifact elsewhere."""
    return folder.is_symlink() or (folder.is_dir() and any(child.is_symlink() for child in folder.iterdir()))


class NotExportedError(ArtifactError):
    """No artifact has that name; the message names the command that makes one."""

    def __init__(self, name: str, root: Path) -> None:
        super().__init__(f"{name} is not exported yet; {_remedy(root, name)}")


class FileNotInArtifactError(ArtifactError):
    """An older version wrote the artifact without that file; the message names the command that adds it."""


class WeightSource(StrEnum):
    """The source of the weights."""

    PRETRAINED = "pretrained"
    UNTRAINED = "untrained"
    FILE = "file"


class _ManifestPart(BaseModel):
    """A part of the manifest. It ignores unknown keys, so that an older service reads a newer artifact."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class WeightRecord(_ManifestPart):
    """The weights inside: `name` is torchvision's tag or the file's name; untrained weights have a `seed`."""

    source: WeightSource
    name: str
    sha256: str | None = None
    seed: int | None = None


class Thresholds(_ManifestPart):
    """The parity that an engine must reach for each image; `service.engines.selection.parity` says how it compares."""

    max_abs_diff: float
    logit_cosine: float
    top1_agreement: float
    top5_agreement: float


class ParityReport(_ManifestPart):
    """How one engine at one precision compares with the reference on photos and on random pixels.

    The reference is eager PyTorch, or for an imported model its own file in ONNX Runtime.
    """

    runtime: str
    runtime_version: str
    precision: str
    device: str
    images: int
    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    logit_cosine: float
    top1_agreement: float
    top5_agreement: float
    thresholds: Thresholds
    passed: bool


class Manifest(_ManifestPart):
    """Everything about the artifact that is not a tensor.

    `acc1` and `acc5` are the published accuracy of the weights in percent on `acc_dataset`, None if none is
    published; `measured` has the results of `topfive evaluate` on the user's own images. `year` is None and `paper`
    empty for an imported model. `max_batch` is None if the graph takes any batch size. `rounding` is the precision to
    which an imported file rounds its own values. `packaged`: it comes with topfive.
    """

    format: Literal[1] = 1
    name: str
    family: str
    year: int | None
    paper: str
    input: InputSpec
    classes: int
    parameters: int
    parameters_train: int
    macs: int
    acc1: float | None
    acc5: float | None
    acc_dataset: str | None = None
    weights: WeightRecord
    max_batch: int | None = None
    rounding: str = "f32"
    packaged: bool = False
    parity: tuple[ParityReport, ...] = ()
    measured: tuple[MeasuredAccuracy, ...] = ()
    tools: dict[str, str] = {}
    files: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact in `folder`. `damaged_newer` says why newer versions of it cannot be read."""

    folder: Path
    version: int
    manifest: Manifest
    labels: tuple[Label, ...]
    damaged_newer: tuple[str, ...] = ()

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH

    @property
    def manifest_file(self) -> Path:
        return self.folder / MANIFEST

    def parity(self, runtime: str, precision: str) -> ParityReport | None:
        """The report of that runtime at that precision, or None if the export did not measure it."""
        for report in self.manifest.parity:
            if (report.runtime, report.precision) == (runtime, precision):
                return report
        return None


def versions(root: Path, name: str) -> list[int]:
    """The versions of `name` under `root` in ascending order."""
    folder = root / name
    if not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdecimal() and child.is_dir())


def exported_names(root: Path) -> list[str]:
    """The sorted names under `root` that have at least one version; those that no reply can hold are left out."""
    if not root.is_dir():
        return []
    names = [child.name for child in root.iterdir() if child.name.isprintable()]  # no line ends, no bytes but UTF-8
    return sorted(name for name in names if not name.startswith(".") and versions(root, name))


def root_of(root: Path, name: str) -> Path:
    """`root`, or PACKAGED if no version of `name` is exported to `root` and one comes with topfive."""
    return PACKAGED if not exported_versions(root, name) and exported_versions(PACKAGED, name) else root


def newest_whole(root: Path, name: str, read: Callable[[Path, str, int], X]) -> tuple[X, tuple[str, ...]]:
    """The result of `read` for the newest version that it can read, and why it could not read the newer ones.

    `read` gets the root of `root_of`. Raises NotExportedError if there is no version, the ArtifactError of the newest
    if none can be read.
    """
    root, errors = root_of(root, name), list[ArtifactError]()
    for version in reversed(_complete(root, name)):
        try:
            return read(root, name, version), tuple(map(str, errors))
        except ArtifactError as error:
            errors.append(error)
    raise errors[0]


def _complete(root: Path, name: str) -> list[int]:
    """The versions that have a manifest. Raises NotExportedError if there is none."""
    if not (found := exported_versions(root, name)):
        raise NotExportedError(name, root)
    return found


def exported_versions(root: Path, name: str) -> list[int]:
    """The versions of `name` under `root` that have a manifest, in ascending order."""
    return [version for version in versions(root, name) if (root / name / str(version) / MANIFEST).exists()]


def read_manifest(root: Path, name: str, version: int | None = None) -> tuple[int, Manifest]:
    """Version and manifest of the newest artifact of `name`, or of `version`; the other files are not checked.

    Raises NotExportedError if there is none, ArtifactError if the manifest cannot be read.
    """
    number = _complete(root, name)[-1] if version is None else version
    path = (root / name / str(number)).resolve() / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
        return number, manifest.model_copy(update={"name": name}) if _is_linked(root / name) else manifest
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); {_remedy(root, name)}") from error
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) or "JSON" for problem in error.errors())
        raise ArtifactError(
            f"{path} is not a manifest that this version reads ({fields}); {_remedy(root, name)}"
        ) from error


def load(root: Path, name: str, version: int | None = None) -> Artifact:
    """The newest artifact of `name`, or that of `version`, with every file checked against its sha256.

    Its root is that of `root_of`. Raises NotExportedError, or ArtifactError with the file that is missing or differs.
    """
    root = root_of(root, name)
    number, manifest = read_manifest(root, name, version)
    folder = (root / name / str(number)).resolve()
    remedy = _remedy(root, name, manifest.family)
    if manifest.name != name:
        raise ArtifactError(f"{folder} holds the model {manifest.name}, not {name}; {remedy}")
    if missing := {GRAPH, LABELS} - manifest.files.keys():
        raise ArtifactError(f"{folder / MANIFEST} does not list {', '.join(sorted(missing))}; {remedy}")
    try:
        for file, expected in manifest.files.items():
            path = folder / file
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; {remedy}")
            if sha256(path) != expected:
                raise ArtifactError(f"{path} differs from its manifest (sha256); {remedy}")
        labels = read_labels(folder / LABELS)
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise ArtifactError(f"{error}; {remedy}") from error
    if len(labels) != manifest.classes:
        raise ArtifactError(f"{folder / LABELS} has {len(labels)} rows for {manifest.classes} classes; {remedy}")
    return Artifact(folder, number, manifest, labels)


def read_file(root: Path, version: int, manifest: Manifest, file: str) -> bytes:
    """The content of one file of the artifact with that manifest under `root`, checked against its sha256.

    Raises FileNotInArtifactError if the manifest does not list it, ArtifactError if it is missing or differs.
    """
    name, remedy = manifest.name, _remedy(root, manifest.name, manifest.family)
    path = root_of(root, name) / name / str(version) / file
    if (expected := manifest.files.get(file)) is None:
        raise FileNotInArtifactError(f"version {version} of {name} has no {file}; {remedy}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise ArtifactError(f"{path} differs from its manifest (sha256); {remedy}")
    return content


@contextmanager
def new_version(root: Path, name: str) -> Iterator[Path]:
    """A temporary folder that becomes the next version of `name` if the block succeeds, and is deleted otherwise."""
    model_folder = root / name
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        yield draft
        draft.chmod(0o755)  # the server may run as another user than the export
        for path in draft.iterdir():
            path.chmod(0o644)
            sync(path)
        sync(draft)
        model_folder.mkdir(exist_ok=True)
        while True:
            version = max(versions(root, name), default=0) + 1
            try:
                draft.rename(model_folder / str(version))
            except OSError:
                if not (model_folder / str(version)).is_dir():
                    raise
                continue  # another export took this number meanwhile
            break
        sync(model_folder)
        sync(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into `folder`, with the sha256 of every file that is there already."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    content = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
