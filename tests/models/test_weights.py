"""Weights: downloads from a server in this process that misbehaves on request, files of every kind, and the seed."""

import hashlib
import pickle
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from export.weights_choice import WeightsChoice
from models.artifact.artifact import WeightRecord, WeightSource, sha256
from models.build import build
from models.catalog import CATALOG, Architecture
from models.weights.weights import (
    HostUnreachableError,
    WeightsError,
    download,
    load_file,
    load_pretrained,
    load_state,
    read_state_dict,
)
from tests.download_host import Answer, Host, failed, not_http, reply, whole

SQUEEZENET, TINY, GOOGLENET = CATALOG["squeezenet1_1@IMAGENET1K_V1"], CATALOG["tiny"], CATALOG["googlenet"]
BODY = bytes(range(256)) * 4000
PREFIX = hashlib.sha256(BODY).hexdigest()[:8]
NAME = f"net-{PREFIX}.pth"

State = dict[str, Tensor]


CUT_OFF = reply(BODY[: len(BODY) // 2], Content_Length=len(BODY))
CUT_OFF_CHUNK = reply(b"ffff\r\nonly this", Transfer_Encoding="chunked")
NONSENSE_LENGTH = reply(BODY, Content_Length="much")
REDIRECTED = reply(status=302, Location=f"/moved/{NAME}")


def ignore(done: int, total: int) -> None:
    """Progress that is not shown."""


def randomised(network: nn.Module, seed: int = 7) -> State:
    """A state dict like the network's, of other values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value.clone()
        for name, value in network.state_dict().items()
    }


def same(network: nn.Module, state: State) -> bool:
    """Whether the network holds those values and no others."""
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())


def left_in(folder: Path) -> list[str]:
    """Names of the files in a folder that may not exist."""
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


# ---- download


@pytest.mark.parametrize("answer", [whole(BODY), reply(BODY), REDIRECTED], ids=["whole", "no length", "redirected"])
def test_download(answer: Answer, host: Host, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A file whose sha256 begins as expected is kept under its name, and nothing beside it.

    Progress counts up to the whole, in several steps for a large file.
    """
    url = host.serve(NAME, answer)
    host.answers[f"/moved/{NAME}"] = whole(BODY)
    steps: list[tuple[int, int]] = []
    download(url, tmp_path / "cache" / NAME, lambda done, total: steps.append((done, total)), PREFIX)

    assert left_in(tmp_path / "cache") == [NAME]
    assert (tmp_path / "cache" / NAME).read_bytes() == BODY
    assert len(steps) > 2
    assert steps == sorted(steps)
    assert steps[-1] == (len(BODY), 0 if "no length" in request.node.name else len(BODY))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (whole(BODY[:-1]), f"gave a file whose sha256 begins .*, not {PREFIX}; it was not kept"),
        (whole(b""), "it was not kept"),
        (failed(404), "answered 404 Not Found"),
        (failed(403), "answered 403 Forbidden"),
        (failed(500), "answered 500 Internal Server Error"),
        (CUT_OFF, "broke off after 512000 of 1024000 bytes; try again"),
        (CUT_OFF_CHUNK, "broke off after"),
        (NONSENSE_LENGTH, "broke off after 0 bytes"),
        (not_http, "gave no HTTP answer: BadStatusLine"),
    ],
    ids=["checksum", "empty", "404", "403", "500", "cut off", "cut off chunk", "nonsense length", "not HTTP"],
)
def test_bad_answer(answer: Answer, message: str, host: Host, tmp_path: Path) -> None:
    """A host that answers, but not with the file, is an error and never a reason to go on without; nothing is kept."""
    with pytest.raises(WeightsError, match=message) as caught:
        download(host.serve(NAME, answer), tmp_path / NAME, ignore, PREFIX)

    assert not isinstance(caught.value, HostUnreachableError)
    assert left_in(tmp_path) == []


def test_no_answer(host: Host, tmp_path: Path) -> None:
    """A port without a listener, a name that does not resolve and a silent connection are a host out of reach.

    `.invalid` never resolves (RFC 2606).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it meanwhile
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
        with pytest.raises(HostUnreachableError, match=r"cannot be reached: .*refused"):
            download(url, tmp_path / NAME, ignore, PREFIX)
    with pytest.raises(HostUnreachableError, match=r"weights\.invalid.* cannot be reached"):
        download(f"http://weights.invalid/{NAME}", tmp_path / NAME, ignore, PREFIX)
    with pytest.raises(HostUnreachableError, match="without response"):
        download(host.serve(NAME, lambda request: None), tmp_path / NAME, ignore, PREFIX)

    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("models/", "is not an address"),
        ("localhost:8000/", "is not an address"),
        ("http://localhost:http/", "is not an address"),
        ("http:///models/", "is not an address"),
        ("file:///nowhere/at/all/", "is not an address"),
        ("https://HOST/", r"is not trusted: .*SSL"),
    ],
)
def test_no_address(folder: str, message: str, host: Host, tmp_path: Path) -> None:
    """A mirror that is no address, or has no TLS, is a mistake to be told, not a host that cannot be reached."""
    with pytest.raises(WeightsError, match=message) as caught:
        download(folder.replace("HOST", host.address) + NAME, tmp_path / NAME, ignore, PREFIX)

    assert not isinstance(caught.value, HostUnreachableError)


def test_folder_as_mirror(tmp_path: Path) -> None:
    """A folder of this machine serves as well, where there is no network."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / NAME).write_bytes(BODY)
    download((tmp_path / "mirror" / NAME).as_uri(), tmp_path / NAME, ignore, PREFIX)

    assert (tmp_path / NAME).read_bytes() == BODY


def test_unwritable_cache(host: Host, tmp_path: Path) -> None:
    """Where the cache folder cannot be made, the error names it and the variable that moves it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"file/checkpoints cannot be written .* set TORCH_HOME"):
        download(host.serve(NAME, whole(BODY)), tmp_path / "file" / "checkpoints" / NAME, ignore, PREFIX)

    assert host.asked == []


# ---- load_pretrained


class Published:
    """torchvision's part in a download: a set of weights whose address and checksum the test knows."""

    tag: ClassVar[str] = "IMAGENET1K_V1"

    def __init__(self, host: Host, folder: Path) -> None:
        self.state = randomised(build(SQUEEZENET))
        torch.save(self.state, folder / "made.pth")
        self.body = (folder / "made.pth").read_bytes()
        self.sha256 = hashlib.sha256(self.body).hexdigest()
        self.file = f"squeezenet1_1-{self.sha256[:8]}.pth"
        self.url = host.url + self.file

    def weights_of(self, name: str) -> dict[str, SimpleNamespace]:
        """In place of `torchvision.models.get_model_weights`."""
        assert name == "squeezenet1_1"
        return {self.tag: SimpleNamespace(url=self.url)}


@pytest.fixture
def published(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """Weights of squeezenet1_1 that torchvision says are on `host`; torch's cache is in the test's folder."""
    published = Published(host, tmp_path)
    monkeypatch.setattr("torchvision.models.get_model_weights", published.weights_of)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return published


def cache(tmp_path: Path) -> Path:
    """Where torch keeps downloaded weights."""
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_published_file_is_recognised(published: Published, tmp_path: Path) -> None:
    """A file of the user's that torchvision publishes, under whatever name, is recorded as what it is."""
    (tmp_path / "mine.pth").write_bytes(published.body)
    other = randomised(build(SQUEEZENET))
    save(other, tmp_path / "other.pth")
    network = build(SQUEEZENET)
    record = load_file(network, SQUEEZENET, tmp_path / "mine.pth")

    assert record == WeightRecord(source=WeightSource.PRETRAINED, name="IMAGENET1K_V1", sha256=published.sha256)
    assert same(network, published.state)
    assert load_file(network, SQUEEZENET, tmp_path / "other.pth").source is WeightSource.FILE

    choice = WeightsChoice.parse(str(tmp_path / "mine.pth"), None)
    assert choice.satisfied_by(record, SQUEEZENET), "it was exported from this very file"
    assert not WeightsChoice.parse(str(tmp_path / "other.pth"), None).satisfied_by(record, SQUEEZENET)
    assert not WeightsChoice.parse(str(tmp_path / "gone.pth"), None).satisfied_by(record, SQUEEZENET)


def test_pretrained(host: Host, published: Published, tmp_path: Path) -> None:
    """The published file is loaded and recorded with its tag and its whole sha256, and downloaded only once."""
    host.serve(published.file, whole(published.body))
    for _ in range(2):
        network = build(SQUEEZENET)
        record = load_pretrained(network, SQUEEZENET, mirror=None, progress=ignore)

        assert (record.source, record.name, record.sha256) == (
            WeightSource.PRETRAINED,
            "IMAGENET1K_V1",
            published.sha256,
        )
        assert same(network, published.state)
    assert host.asked == [f"/models/{published.file}"]
    assert left_in(cache(tmp_path)) == [published.file]


@pytest.mark.parametrize("slash", ["", "/"])
def test_mirror(slash: str, host: Host, published: Published) -> None:
    """A mirror stands for the folder of the file, with or without a slash at its end."""
    host.answers[f"/mirror/{published.file}"] = whole(published.body)
    load_pretrained(build(SQUEEZENET), SQUEEZENET, mirror=f"http://{host.address}/mirror{slash}", progress=ignore)

    assert host.asked == [f"/mirror/{published.file}"]


def test_damaged_cache(host: Host, published: Published, tmp_path: Path) -> None:
    """A file that was damaged in the cache is an error that says which to delete; it is neither used nor replaced."""
    cache(tmp_path).mkdir(parents=True)
    damaged = cache(tmp_path) / published.file
    damaged.write_bytes(published.body[:-1] + b"\xff\xff")
    with pytest.raises(WeightsError, match=rf"{published.file} is damaged: .* delete it") as caught:
        load_pretrained(build(SQUEEZENET), SQUEEZENET, mirror=None, progress=ignore)

    assert not isinstance(caught.value, HostUnreachableError)
    assert host.asked == []
    assert damaged.exists()


@pytest.mark.parametrize("name", ["lenet5", "squeezenet1_1"])
def test_weights_that_come_with_topfive(name: str) -> None:
    """They need no download, have the sha256 of the catalog, and a damaged file is refused."""
    (weights,) = (one for one in CATALOG[name].weight_sets if one.file)
    record = load_pretrained(build(CATALOG[name]), CATALOG[name], mirror="http://weights.invalid", progress=ignore)
    assert record == WeightRecord(source=WeightSource.PRETRAINED, name=weights.tag, sha256=weights.sha256)

    damaged = replace(CATALOG[name], weight_sets=(replace(weights, sha256="0" * 64),))
    with pytest.raises(WeightsError, match=f"{weights.file} is damaged: .* install topfive again"):
        load_pretrained(build(CATALOG[name]), damaged, mirror=None, progress=ignore)


def test_squeezenet_is_what_was_released(shared_data: Path) -> None:
    """The weights in the repository have the values of the file of 2016 in 32 bits, bit by bit."""
    network, original = build(CATALOG["squeezenet1_1"]), read_state_dict(shared_data / "squeezenet1_1.safetensors")
    load_pretrained(network, CATALOG["squeezenet1_1"], mirror=None, progress=ignore)

    assert same(network, original)


# ---- files


def save(state: State, path: Path) -> None:
    """Save the state dict as the suffix says."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("file", ["w.pth", "w.pt", "w.safetensors", "checkpoint.pth"])
def test_file(file: str, tmp_path: Path) -> None:
    """A state dict in either format is loaded, and recorded with the file's name and sha256.

    A training checkpoint that holds the state dict among other things is taken as well.
    """
    network = build(TINY)
    state = randomised(network)
    if file.startswith("checkpoint"):
        torch.save({"epoch": 90, "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / file)
    else:
        save(state, tmp_path / file)
    record = load_file(network, TINY, tmp_path / file)

    assert same(network, state)
    assert (record.source, record.name, record.sha256) == (WeightSource.FILE, file, sha256(tmp_path / file))


class Code:
    """An object whose pickle runs code: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.mkdir, (self.folder,)


def test_code_in_a_pickle(tmp_path: Path) -> None:
    """A pickle that would run code is refused, and its code does not run."""
    proof = tmp_path / "it-ran"
    torch.save({"weight": Code(proof)}, tmp_path / "bad.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"weight": Code(proof)}))
    for file in ("bad.pth", "bare.pth"):
        with pytest.raises(
            WeightsError, match=f"{file} (cannot be read as a state dict|is damaged, or holds more than tensors)"
        ):
            read_state_dict(tmp_path / file)

    assert not proof.exists()
    pickle.loads((tmp_path / "bare.pth").read_bytes())
    assert proof.exists(), "the pickle does nothing, so the test showed nothing"


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"", b"no weights", bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_no_state_dict_at_all(data: bytes, file: str, tmp_path: Path) -> None:
    """Bytes that are no state dict are an error that names the file."""
    (tmp_path / file).write_bytes(data)
    with pytest.raises(WeightsError, match=f"{file} (cannot be read as a state dict: |is damaged)"):
        read_state_dict(tmp_path / file)


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_damaged_file(file: str, tmp_path: Path) -> None:
    """A file that was cut off is an error that names it."""
    save(randomised(build(TINY)), tmp_path / file)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=f"{file} cannot be read"):
        read_state_dict(tmp_path / file)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.ones(3), {"state_dict": {"a": "b"}}])
def test_something_else(content: object, tmp_path: Path) -> None:
    """A file that holds something else than names and tensors is an error."""
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not hold a state dict"):
        read_state_dict(tmp_path / "w.pth")


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is an error with its path."""
    for path, what in (
        (tmp_path / "none.pth", "not there"),
        (tmp_path / "none.safetensors", "not there"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(WeightsError, match=f"{path} is {what}"):
            load_file(build(TINY), TINY, path)


# ---- what fits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.bias": None}, r"lacks classifier\.bias"),
        ({"head.weight": torch.ones(3)}, r"has the unknown head\.weight"),
        ({"classifier.bias": torch.ones(10)}, r"does not fit: classifier\.bias is \(10,\), not \(1000,\)"),
        ({"features.1.1.bias": torch.tensor([float("nan"), *[0.0] * 15])}, r"is not finite in features\.1\.1\.bias"),
        (
            {"features.1.1.running_var": torch.tensor([float("inf"), *[1.0] * 15])},
            r"is not finite in features\.1\.1\.running_var",
        ),
    ],
    ids=["lacking", "unknown", "reshaped", "not a number", "infinite"],
)
def test_misfit(change: dict[str, Tensor | None], message: str) -> None:
    """A tensor that is missing, unknown, of another shape or not finite is named, and nothing is loaded."""
    network = build(TINY)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: value for name, value in (randomised(network) | change).items() if value is not None}
    with pytest.raises(WeightsError, match=rf"w\.pth {message}; is it a tiny\?"):
        load_state(network, TINY, state, what="w.pth")

    assert same(network, before)


def test_another_architecture(tmp_path: Path) -> None:
    """The weights of another network are an error that names the first tensors and asks the right question."""
    torch.save(build(SQUEEZENET).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"lacks features\.0\.0\.weight.* and \d+ more; is it a tiny\?"):
        load_file(build(TINY), TINY, tmp_path / "w.pth")


def test_counters_may_be_missing() -> None:
    """Files from before batch norm counted its batches have no counter; they load."""
    network = build(TINY)
    state = {name: value for name, value in randomised(network).items() if not name.endswith("num_batches_tracked")}
    load_state(network, TINY, state, what="w.pth")

    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())


def test_auxiliary_heads() -> None:
    """GoogLeNet's published file has auxiliary heads; the network that is served takes all but them."""
    published = get_model("googlenet", weights=None, init_weights=False)
    state = published.state_dict()
    assert any(name.startswith("aux1.") for name in state)
    network = build(GOOGLENET)
    load_state(network, GOOGLENET, state, what="w.pth")

    assert same(network, {name: value for name, value in state.items() if not name.startswith("aux")})
    with pytest.raises(WeightsError, match=r"has the unknown aux1\."):
        load_state(build(SQUEEZENET), SQUEEZENET, build(SQUEEZENET).state_dict() | {"aux1.x": torch.ones(1)}, what="w")


# ---- untrained


@pytest.mark.parametrize("architecture", [TINY, SQUEEZENET, GOOGLENET], ids=lambda one: one.name)
def test_build_is_deterministic(architecture: Architecture) -> None:
    """A network has the same values each time, whatever the global generator holds, and that stays as it was."""
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build(architecture)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)

    assert same(first, build(architecture).state_dict())
    assert not first.training


def test_source_that_is_no_network() -> None:
    """A catalog entry whose source does not give a network is a TypeError that names it."""
    with pytest.raises(TypeError, match="builtins:dict gave a dict"):
        build(replace(TINY, source="builtins:dict"))
