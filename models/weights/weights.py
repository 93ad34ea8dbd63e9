"""Loads weights into a network: a published file, a file of the user, or none. Imports torch."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from http.client import HTTPException, InvalidURL
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import urlopen

import torch
from torch import Tensor, nn

from models.artifact.artifact import WeightRecord, WeightSource, sha256
from models.build import SEED
from models.catalog import Architecture, WeightSet

_BUNDLED = Path(__file__).parent.parent / "data"
_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 18

Progress = Callable[[int, int], None]
"""Called with the bytes received and the total bytes, 0 if the server does not send it."""


class WeightsError(Exception):
    """The weights cannot be loaded; the message names the cause and the remedy."""


class HostUnreachableError(WeightsError):
    """The download host does not answer: no name, no route, no connection."""


def untrained() -> WeightRecord:
    """The record of a network as `models.build.build` initialises it, which is the same on every machine."""
    return WeightRecord(source=WeightSource.UNTRAINED, name="untrained", seed=SEED)


def load_file(network: nn.Module, architecture: Architecture, path: Path) -> WeightRecord:
    """Load a state dict in a .pth, .pt or .safetensors file, or an .onnx file of the same architecture.

    The record of a published file, known by its sha256, is that of the published weights, so that their input recipe
    and accuracy apply. Raises WeightsError if the file cannot be read or does not fit.
    """
    _load(network, architecture, path)
    digest = sha256(path)
    for published in architecture.weight_sets:
        if digest.startswith(_known_sha256(architecture, published)):
            return WeightRecord(source=WeightSource.PRETRAINED, name=published.tag, sha256=digest)
    return WeightRecord(source=WeightSource.FILE, name=path.name, sha256=digest)


def _load(network: nn.Module, architecture: Architecture, path: Path) -> None:
    if path.suffix == ".onnx":
        _load_onnx(network, architecture, path)
    else:
        load_state(network, architecture, read_state_dict(path), what=str(path))


def _load_onnx(network: nn.Module, architecture: Architecture, path: Path) -> None:
    try:
        from models.weights.from_onnx import load_onnx
        from models.weights.onnx_reader import OnnxFileError
    except ImportError as error:
        raise WeightsError(f"{error.name} is not installed; .onnx files need: pip install '.[cpu,export]'") from error
    try:
        load_onnx(network, architecture, path)
    except OnnxFileError as error:
        raise WeightsError(str(error)) from error


def load_pretrained(
    network: nn.Module, architecture: Architecture, *, mirror: str | None, progress: Progress
) -> WeightRecord:
    """Load the published weights. Those that do not come with topfive are downloaded once, into torch's cache folder.

    `mirror` replaces the folder of their URL. Raises HostUnreachableError if no host answers, WeightsError if nothing
    is published, a host gives an error, or the checksum differs.
    """
    if (weights := architecture.default_weights) is None:
        raise WeightsError(f"{architecture.name} has no pretrained weights; use --weights untrained or a file")
    path = _BUNDLED / weights.file if weights.file else _download(architecture, weights, mirror, progress)
    digest, expected = sha256(path), _known_sha256(architecture, weights)
    if not digest.startswith(expected):
        remedy = "install topfive again" if weights.file else "delete it and try again"
        raise WeightsError(f"{path} is damaged: its sha256 begins {digest[:8]}, not {expected[:8]}; {remedy}")
    _load(network, architecture, path)
    return WeightRecord(source=WeightSource.PRETRAINED, name=weights.tag, sha256=digest)


def _known_sha256(architecture: Architecture, weights: WeightSet) -> str:
    """The sha256 of the file, or its first eight digits: torchvision publishes no more, in the name of the file."""
    return weights.sha256 or PurePosixPath(_urls(architecture, weights)[0]).stem.rpartition("-")[2]


def _urls(architecture: Architecture, weights: WeightSet) -> tuple[str, ...]:
    """The addresses of the published file, the preferred one first."""
    if weights.urls:
        return weights.urls
    from torchvision.models import get_model_weights

    return (str(get_model_weights(architecture.source.partition(":")[2])[weights.tag].url),)


def _download(architecture: Architecture, weights: WeightSet, mirror: str | None, progress: Progress) -> Path:
    """The file in torch's cache folder, downloaded if it is not there; the hosts are asked in turn."""
    urls = _urls(architecture, weights)
    file = PurePosixPath(urlsplit(urls[0]).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        return path
    if mirror:
        urls = (urljoin(mirror.rstrip("/") + "/", file),)
    errors: list[WeightsError] = []
    for url in urls:
        try:
            download(url, path, progress, _known_sha256(architecture, weights))
            return path
        except WeightsError as error:
            errors.append(error)
    silent = all(isinstance(error, HostUnreachableError) for error in errors)
    raise (HostUnreachableError if silent else WeightsError)("; ".join(map(str, errors)))


def download(url: str, path: Path, progress: Progress, expected: str) -> None:
    """Download `url` to `path`, which appears only if the file is complete and its sha256 begins with `expected`.

    Raises HostUnreachableError if the host does not answer, else WeightsError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
    except OSError as error:
        raise WeightsError(f"{path.parent} cannot be written ({error.strerror}); set TORCH_HOME to a folder") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            digest = _receive(url, file.write, progress)
        if not digest.startswith(expected):
            begins = f"begins {digest[:8]}, not {expected[:8]}"
            raise WeightsError(f"{url} gave a file whose sha256 {begins}; it was not kept")
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _receive(url: str, write: Callable[[bytes], object], progress: Progress) -> str:
    """Stream `url` into `write` and return the SHA-256 of the content."""
    digest, done = hashlib.sha256(), 0
    try:
        answer = urlopen(url, timeout=_TIMEOUT_S)
    except HTTPError as error:
        error.close()
        raise WeightsError(f"{url} answered {error.code} {error.reason}") from error
    except (ValueError, InvalidURL) as error:
        raise WeightsError(f"{url} is not an address: {error}") from error
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, (str, FileNotFoundError)):  # urllib's own objections: unknown scheme, no host, no file
            raise WeightsError(f"{url} is not an address: {reason}") from error
        if isinstance(reason, SSLError):  # another host answered
            raise WeightsError(f"{url} is not trusted: {reason}") from error
        raise HostUnreachableError(f"{url} cannot be reached: {reason}") from error
    except HTTPException as error:
        raise WeightsError(f"{url} gave no HTTP answer: {error!r}") from error
    try:
        with answer:
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(_CHUNK_BYTES):
                write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, total)
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(f"{url} broke off after {done} bytes ({error}); try again") from error
    if total and done != total:
        raise WeightsError(f"{url} broke off after {done} of {total} bytes; try again")
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file; code in a pickle never runs. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(
            f"{path} is {'a folder' if path.is_dir() else 'not there'}; name a .pth or .safetensors file"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as read

            state: object = read(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors, which is never loaded; save network.state_dict() instead"
        ) from error
    except Exception as error:  # each reader fails in its own ways on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as a state dict: {reason}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # a training checkpoint around the state dict
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} does not hold a state dict (names and tensors)")
    return {str(name): value for name, value in state.items()}


def load_state(network: nn.Module, architecture: Architecture, state: Mapping[str, Tensor], *, what: str) -> None:
    """Copy `state` into `network`; it must hold every tensor with its shape, except for training-only submodules.

    Raises WeightsError with the first tensors that do not fit or are not finite; `what` names the file.
    """
    own = network.state_dict()
    ignored = tuple(f"{part}." for part in architecture.training_only)
    state = {name: value for name, value in state.items() if not name.startswith(ignored)} if ignored else state
    problems = {
        "lacks": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "has the unknown": [name for name in state if name not in own],
        "does not fit:": [
            f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
        "is not finite in": [name for name, value in state.items() if not value.isfinite().all()],
    }
    for verb, names in problems.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise WeightsError(f"{what} {verb} {', '.join(names[:3])}{more}; is it a {architecture.name}?")
    network.load_state_dict(dict(state), strict=False)
