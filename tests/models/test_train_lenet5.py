"""Training LeNet-5: the committed weights are as good as is written beside them, and a seed gives the same bytes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models.architectures import train_lenet5
from models.architectures.draw_digits import STYLES, draw, photograph
from models.architectures.lenet5 import lenet5
from models.architectures.train_lenet5 import (
    EPOCHS,
    SEED,
    WEIGHTS,
    Digits,
    Presentation,
    Score,
    as_input,
    evaluate,
    main,
    present,
    read_digits,
    save,
    train,
    vary,
)
from models.build import ServedNetwork
from models.catalog import CATALOG, InputSpec
from service.common.types import ImageLimits
from service.preprocessing import decode, transforms
from tests import drawn_digits

RECORD = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data() -> tuple[Digits, Digits]:
    """The training part and the test part."""
    return read_digits()


def committed() -> torch.nn.Module:
    """The network with the weights that come with topfive."""
    network = lenet5().eval()
    network.load_state_dict(load_file(WEIGHTS))
    return network


@pytest.mark.parametrize("how", Presentation)
def test_committed_weights_read_the_test_part_as_recorded(data: tuple[Digits, Digits], how: Presentation) -> None:
    """In each presentation they read as many of the 360 test digits as the record says: 97 % or more."""
    found = evaluate(committed(), data[1], how)

    assert found == Score(**RECORD["test"][how])
    assert found.images == 360
    assert found.top1 >= 0.97 * found.images
    assert found.top5 >= found.top1


@pytest.mark.parametrize("dark_ink", [True, False])
def test_committed_weights_read_digits_of_other_hands(dark_ink: bool) -> None:
    """Of digits that another renderer draws, with all kinds of pen and paper, they read 95 % in each polarity.

    Each file goes the way of a request: the service's decoder and resize, and the grey conversion of the graph.
    """
    spec = CATALOG["lenet5"].input
    found = [(file, digit) for sheet, digit, file in drawn_digits.files() if sheet.dark_ink is dark_ink]
    samples = [transforms.center_crop(spec, decode.decode_pixels(file, ImageLimits())) for file, _ in found]

    with torch.inference_mode():
        answers = ServedNetwork(committed(), spec).eval()(torch.from_numpy(np.stack(samples))).argmax(dim=1)

    right = [str(answer) == digit for answer, (_, digit) in zip(answers.tolist(), found, strict=True)]
    assert len(right) > 100
    assert sum(right) >= 0.95 * len(right)


def test_record_is_of_a_default_run(data: tuple[Digits, Digits]) -> None:
    """What is committed came from the script's own seed and epochs, on the split that it makes."""
    assert (RECORD["seed"], RECORD["epochs"]) == (SEED, EPOCHS)
    assert (RECORD["train_images"], RECORD["test_images"]) == tuple(len(part.images) for part in data) == (1437, 360)
    assert set(RECORD["versions"]) == {"python", "torch", "numpy", "pillow", "scikit-learn"}


def test_split_is_stratified_and_has_nothing_twice(data: tuple[Digits, Digits]) -> None:
    """No image is in both parts, and the test part has a fifth of each digit."""
    train_part, test_part = data
    seen = {digit.tobytes() for digit in train_part.images}

    assert not [digit for digit in test_part.images if digit.tobytes() in seen]
    counts, whole = np.bincount(test_part.labels), np.bincount(torch.cat([train_part.labels, test_part.labels]))
    assert np.abs(counts - whole / 5).max() < 1
    assert (train_part.images.min(), train_part.images.max()) == (0, 255)


def few(data: tuple[Digits, Digits]) -> Digits:
    """Enough digits to learn something from in a second."""
    return Digits(data[0].images[:256], data[0].labels[:256])


def test_same_seed_gives_the_same_bytes_and_the_loss_falls(data: tuple[Digits, Digits], tmp_path: Path) -> None:
    """Two short runs of one seed write one file, another seed another, and the loss falls from epoch to epoch."""
    losses: list[float] = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        save(train(few(data), seed=seed, epochs=3, report=losses.append), tmp_path / name)

    one, again, other = ((tmp_path / name).read_bytes() for name in ("one", "again", "other"))
    assert one == again
    assert one != other
    assert losses[:3] == losses[3:6]
    assert losses[0] > losses[1] > losses[2]


def test_training_leaves_torch_as_it_was(data: tuple[Digits, Digits]) -> None:
    """Threads, random state and determinism are those of before, also where a run breaks off."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()

    def interrupted(_loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(few(data), seed=1, epochs=2, report=interrupted)

    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("inverted", [Presentation.WHITE_ON_BLACK, Presentation.BLACK_ON_WHITE])
def test_digit_is_presented_as_the_service_would_see_it(data: tuple[Digits, Digits], inverted: Presentation) -> None:
    """A digit sent as an 8x8 grey PNG becomes, by the service's own decoder and recipe, the picture tested here."""
    digit = data[1].images[0]
    sent = digit if inverted is Presentation.WHITE_ON_BLACK else 255 - digit
    file = io.BytesIO()
    Image.fromarray(sent).save(file, "PNG")

    sample = transforms.center_crop(InputSpec(resize=32, crop=32), decode.decode_pixels(file.getvalue(), ImageLimits()))

    assert (sample == present(digit, inverted)[:, :, None]).all()


def test_margin_is_that_of_mnist(data: tuple[Digits, Digits]) -> None:
    """With a margin the ink keeps off the edge by 4 of 28 parts, and black on white is the same reversed."""
    digit = np.full_like(data[1].images[0], 255)
    picture = present(digit, Presentation.WHITE_ON_BLACK_MARGIN)

    assert np.flatnonzero(picture.max(axis=0) > 127)[[0, -1]].tolist() == [5, 26]
    assert (picture[:4].max(), picture[16, 16]) == (0, 255)
    reverse = present(digit, Presentation.BLACK_ON_WHITE_MARGIN)
    assert np.abs(reverse.astype(int) + picture - 255).max() <= 1


def test_input_has_the_levels_of_the_paper() -> None:
    """A pixel of 0 is -0.1 and one of 255 is 1.175."""
    levels = as_input([np.zeros((32, 32), np.uint8), np.full((32, 32), 255, np.uint8)])

    assert levels.shape == (2, 1, 32, 32)
    assert levels[:, 0, 0, 0].tolist() == pytest.approx([-0.1, 1.175], abs=1e-6)


def test_variations_differ_and_come_in_both_colours(data: tuple[Digits, Digits]) -> None:
    """Of a hundred variations of a digit no two are equal, and about half are dark on light."""
    random = np.random.default_rng(0)
    pictures = [vary(data[0].images[0], random) for _ in range(100)]

    assert len({picture.tobytes() for picture in pictures}) == 100
    assert all(picture.shape == (32, 32) and picture.dtype == np.uint8 for picture in pictures)
    assert 30 < sum(int(np.median(picture)) > 127 for picture in pictures) < 70


def test_drawings_differ_and_come_in_both_polarities() -> None:
    """Of each digit no two drawings are equal, half are dark on light, and a seed gives the same ones."""
    for digit in range(10):
        random, again = np.random.default_rng(digit), np.random.default_rng(digit)
        pictures = [photograph(draw(digit, random, 32), random) for _ in range(50)]

        assert len(STYLES[digit]) > 3
        assert len({picture.tobytes() for picture in pictures}) == 50
        assert all(picture.shape == (32, 32) and picture.dtype == np.uint8 for picture in pictures)
        assert 12 < sum(int(np.median(picture)) > 127 for picture in pictures) < 38
        assert (photograph(draw(digit, again, 32), again) == pictures[0]).all()


def test_command_writes_weights_and_their_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of one epoch writes both files and prints the errors with their intervals."""
    out = tmp_path / "short.safetensors"

    main(["--seed", "3", "--epochs", "1", "--out", str(out)])

    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert (record["seed"], record["epochs"]) == (3, 1)
    assert sum(value.numel() for value in load_file(out).values()) == 60_000
    printed = capsys.readouterr().out
    assert "95 %" in printed
    assert f"{record['test']['white on black']['top1']} of 360" in printed


def test_command_replaces_the_committed_weights_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an option both files go to the current folder; with --replace they are those that topfive reads."""
    ours = tmp_path / "package" / "lenet5.safetensors"
    ours.parent.mkdir()
    ours.write_bytes(b"committed")
    monkeypatch.setattr(train_lenet5, "WEIGHTS", ours)
    monkeypatch.setattr(train_lenet5, "train", lambda *_args, **_options: committed())
    monkeypatch.chdir(tmp_path)

    main([])
    assert ours.read_bytes() == b"committed"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["lenet5.json", "lenet5.safetensors", "package"]

    main(["--replace"])
    assert ours.read_bytes() == (tmp_path / "lenet5.safetensors").read_bytes()
    assert ours.with_suffix(".json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", str(WEIGHTS)], "only --replace"),
        (["--out", "x.safetensors", "--replace"], "not allowed with"),
        (["--epochs", "0"], "at least 1"),
        (["--out", "nowhere/x.safetensors"], "existing folder"),
        (["--out", "weights.pth"], ".safetensors"),
    ],
)
def test_command_refuses_before_it_trains(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be done is said at once, and nothing is written."""
    with pytest.raises(SystemExit):
        main(arguments)

    assert message in capsys.readouterr().err
