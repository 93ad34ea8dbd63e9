"""Trains LeNet-5 on the digits of scikit-learn and on drawn ones: `python -m models.architectures.train_lenet5`.

The same seed gives the same bytes on the same machine and versions. On another processor sums round differently, so the
weights differ and the accuracy is equal only within its interval. It needs the extras `train` and `export`.
"""

import argparse
import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from models.architectures.draw_digits import Images, draw, photograph
from models.architectures.lenet5 import CLASSES, LeNet5, lenet5
from models.artifact.artifact import sha256
from models.artifact.measured import wilson

WEIGHTS = Path(__file__).parent.parent / "data" / "lenet5.safetensors"
SEED = 1998
EPOCHS = 160

_SIDE = 32
_MEAN, _STD = 0.0784314, 0.7843137  # 0 becomes -0.1 and 255 becomes 1.175, the paper's two levels
_SPLIT_SEED = 1998  # not the seed of a run: every run has the same test part
_TEST_SHARE = 0.2
_BATCH = 64
_RATE = 3e-3
_THREADS = 1  # more threads add up in another order, so that the weights depend on the number of cores


@dataclass(frozen=True, slots=True)
class Digits:
    """Handwritten digits: white ink on black, uint8 [N, 8, 8], and their labels, int64 [N]."""

    images: Images
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Score:
    """The number of images, and of those with the right digit first and among the first five."""

    images: int
    top1: int
    top5: int


class Presentation(StrEnum):
    """How a digit is drawn: the colour of its ink, and whether it has a margin."""

    WHITE_ON_BLACK = "white on black"
    BLACK_ON_WHITE = "black on white"
    WHITE_ON_BLACK_MARGIN = "white on black, with a margin"
    BLACK_ON_WHITE_MARGIN = "black on white, with a margin"


_INVERTED = {Presentation.BLACK_ON_WHITE, Presentation.BLACK_ON_WHITE_MARGIN}
_MARGIN = {Presentation.WHITE_ON_BLACK_MARGIN, Presentation.BLACK_ON_WHITE_MARGIN}


def read_digits() -> tuple[Digits, Digits]:
    """The training part and the test part, 1437 and 360 images, with equal shares of each digit."""
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=_TEST_SHARE, random_state=_SPLIT_SEED, stratify=found.target
    )
    labels = torch.from_numpy(found.target.astype(np.int64))
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def present(digit: Images, how: Presentation) -> Images:
    """The sample, uint8 [32, 32], that preprocessing makes of an 8x8 or, with a margin, 28x28 grey PNG."""
    image = Image.fromarray(digit)
    if how in _MARGIN:
        inner = image.resize((20, 20), Image.Resampling.BILINEAR)
        image = Image.new("L", (28, 28))
        image.paste(inner, (4, 4))
    if how in _INVERTED:
        image = ImageOps.invert(image)
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def vary(digit: Images, random: np.random.Generator) -> Images:
    """A random variation of the digit, uint8 [32, 32].

    It varies the size, stretch, place, angle, resampling filter, contrast and brightness; half are black on white.
    """
    size = random.uniform(18, 34)
    stretch = math.exp(random.uniform(-0.12, 0.12))
    width, height = round(size * stretch), round(size / stretch)
    filters = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    inner = Image.fromarray(digit).resize((width, height), filters[random.integers(len(filters))])
    canvas = Image.new("L", (_SIDE, _SIDE))
    across, down = random.uniform(-2.5, 2.5, 2)
    canvas.paste(inner, (round((_SIDE - width) / 2 + across), round((_SIDE - height) / 2 + down)))
    turned = np.asarray(canvas.rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR), dtype=np.float64)
    contrast, brightness = math.exp(random.uniform(-0.5, 1.0)), random.uniform(-20, 20)
    levels = np.clip((turned - 127.5) * contrast + 127.5 + brightness, 0, 255).astype(np.uint8)
    return levels if random.random() < 0.5 else 255 - levels


def as_input(images: Sequence[Images]) -> Tensor:
    """The network's input, float32 [N, 1, 32, 32], for images uint8 [32, 32]."""
    pixels = torch.from_numpy(np.stack(images)).unsqueeze(1)
    return (pixels.float() / 255 - _MEAN) / _STD


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seeds torch and makes it deterministic until the block ends."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(_THREADS)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)


def train(data: Digits, *, seed: int, epochs: int, report: Callable[[float], None]) -> LeNet5:
    """A network trained on `data` and in each epoch as many digits newly drawn; `report` gets each epoch's mean loss.

    The loss is cross-entropy; the optimiser is Adam with a learning rate that falls to zero along half a cosine.
    """
    with _repeatable(seed):
        random = np.random.default_rng(seed)
        network = lenet5().train()
        known = len(data.images)
        labels = torch.cat([data.labels, torch.arange(known) % CLASSES])
        steps = epochs * math.ceil(len(labels) / _BATCH)
        optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(epochs):
            losses = []
            order = random.permutation(len(labels))
            for start in range(0, len(order), _BATCH):
                chosen = order[start : start + _BATCH]
                pictures = [
                    vary(data.images[one], random)
                    if one < known
                    else photograph(draw(int(labels[one]), random, _SIDE), random)
                    for one in chosen
                ]
                loss = nn.functional.cross_entropy(network(as_input(pictures)), labels[torch.from_numpy(chosen)])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
                losses.append(loss.item() * len(chosen))
            report(sum(losses) / len(order))
    return network.eval()


def evaluate(network: nn.Module, data: Digits, how: Presentation) -> Score:
    """The score of `network` on `data`, presented in that way."""
    with torch.inference_mode():
        logits: Tensor = network(as_input([present(digit, how) for digit in data.images]))
    hits = logits.topk(5, dim=1).indices == data.labels.unsqueeze(1)
    return Score(images=len(hits), top1=int(hits[:, 0].sum()), top5=int(hits.any(dim=1).sum()))


def save(network: LeNet5, path: Path) -> None:
    """Write the weights as .safetensors; equal weights are equal bytes."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the weights and a JSON record beside them, and print the test accuracy."""
    parser = argparse.ArgumentParser(prog="python -m models.architectures.train_lenet5", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of initial weights and variations; {SEED}")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"number of epochs; {EPOCHS}")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", type=Path, default=Path(WEIGHTS.name), help="a .safetensors file; ./%(default)s")
    replace = "overwrite the weights that come with topfive"
    target.add_argument("--replace", action="store_const", dest="out", const=WEIGHTS, help=replace)
    chosen = parser.parse_args(arguments)
    if chosen.epochs < 1:
        parser.error("--epochs must be at least 1")
    if chosen.out.suffix != ".safetensors" or not chosen.out.parent.is_dir():
        parser.error(f"--out must be a .safetensors file in an existing folder, not {chosen.out}")
    if chosen.out is not WEIGHTS and chosen.out.resolve() == WEIGHTS.resolve():
        parser.error("only --replace writes the weights that come with topfive")
    console = Console()
    data, test = read_digits()
    with Progress(*Progress.get_default_columns(), console=console) as progress:
        task = progress.add_task("training", total=chosen.epochs)

        def report(loss: float) -> None:
            progress.update(task, advance=1, description=f"training, loss {loss:.4f}")

        network = train(data, seed=chosen.seed, epochs=chosen.epochs, report=report)
    scores = {how: evaluate(network, test, how) for how in Presentation}
    save(network, chosen.out)
    record = {
        "seed": chosen.seed,
        "epochs": chosen.epochs,
        "train_images": len(data.images),
        "test_images": len(test.images),
        "test": {how: asdict(score) for how, score in scores.items()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "pillow", "scikit-learn")},
    }
    chosen.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console.print(_table(scores))
    console.print(f"written: {chosen.out}, sha256 {sha256(chosen.out)}")


def _table(scores: dict[Presentation, Score]) -> Table:
    table = Table("test digits", "right", "top-1 error", "95 % interval", "top-5 error")
    for how, score in scores.items():
        error = wilson(score.images - score.top1, score.images)
        five = wilson(score.images - score.top5, score.images)
        table.add_row(
            str(how),
            f"{score.top1} of {score.images}",
            f"{error.percent:.2f} %",
            f"{error.low:.2f} to {error.high:.2f} %",
            f"{five.percent:.2f} %",
        )
    return table


if __name__ == "__main__":
    main()
