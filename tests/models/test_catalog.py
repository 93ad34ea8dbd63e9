"""The catalog: what it refuses, what it says of names it does not know, and its figures against torchvision's own."""

import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model_weights

import models
from models.build import ServedNetwork, build
from models.catalog import (
    CATALOG,
    Architecture,
    Catalog,
    Channels,
    InputSpec,
    UnknownModelError,
    WeightSet,
    read_catalog,
)

PUBLISHED = [
    (entry, weights) for entry in CATALOG for weights in entry.weight_sets if not (weights.file or weights.urls)
]
IDS = [f"{entry.name}-{weights.tag}" for entry, weights in PUBLISHED]


def published(architecture: Architecture) -> Any:
    """Torchvision's enumeration of the weights of that network."""
    return get_model_weights(architecture.source.partition(":")[2])


def entry(name: str) -> Architecture:
    """An architecture of that name, and nothing else."""
    return Architecture(name=name, family="f", year=2000, paper="p", source="m:f", parameters=1, macs=1)


def test_listing_imports_no_torch() -> None:
    """Names and metadata are listed in a process that has not imported torch or numpy."""
    script = (
        "import sys; from models.catalog import CATALOG; print(*CATALOG.names());"
        "print([one.parameters for one in CATALOG] and sorted({'torch', 'torchvision', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names, imported = done.stdout.splitlines()

    assert names.split() == list(CATALOG.names())
    assert imported == "[]"


def test_duplicate() -> None:
    """Two entries of one name are an error when the catalog is made, not a silent choice."""
    with pytest.raises(ValueError, match="two entries named 'a'"):
        Catalog([entry("a"), entry("b"), entry("a")])


def test_lookup() -> None:
    """A name finds its entry, in the order given; `get` and `in` do not raise."""
    catalog = Catalog([entry("b"), entry("a")])

    assert catalog.names() == ("b", "a")
    assert [one.name for one in catalog] == ["b", "a"]
    assert catalog["a"].name == "a"
    assert catalog.get("c") is None
    assert "b" in catalog
    assert "c" not in catalog


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet5", "resnet50"), ("RESNET50", "resnet50"), ("google-net", "googlenet"), ("squeezenet", "squeezenet1_1")],
)
def test_unknown_names_the_nearest(name: str, nearest: str) -> None:
    """A name that is nearly right raises with the right one first, whatever its case."""
    with pytest.raises(UnknownModelError, match=f"no model '{name}'; did you mean {nearest}") as caught:
        CATALOG[name]

    assert caught.value.name == name
    assert caught.value.nearest[0] == nearest


@pytest.mark.parametrize("name", ["", "zzz", "x" * 100_000])
def test_unknown_like_none(name: str) -> None:
    """A name like no other raises with where all are listed, in one line however many there are."""
    with pytest.raises(UnknownModelError, match="GET /models or topfive models lists them all") as caught:
        CATALOG[name]

    assert len(str(caught.value)) < 160

    assert caught.value.nearest == []


@pytest.mark.parametrize("frozen", [CATALOG["googlenet"], CATALOG["googlenet"].weight_sets[0], InputSpec()])
def test_frozen(frozen: Architecture | WeightSet | InputSpec) -> None:
    """No entry, set of weights, recipe or argument of a builder can be changed, and equal ones are equal."""
    for field in dataclasses.fields(frozen):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field.name, None)
    assert dataclasses.replace(frozen) == frozen
    with pytest.raises(TypeError):
        CATALOG["googlenet"].options["aux_logits"] = False  # type: ignore[index]


@pytest.mark.parametrize(("architecture", "weights"), PUBLISHED, ids=IDS)
def test_figures_of_torchvision(architecture: Architecture, weights: WeightSet) -> None:
    """Accuracy and parameters of every published set of weights are those that torchvision publishes with it.

    Multiply-accumulates are within 0.1 %: torchvision rounds them to millions.
    """
    meta = published(architecture)[weights.tag].meta

    assert meta["_metrics"] == {"ImageNet-1K": {"acc@1": weights.acc1, "acc@5": weights.acc5}}
    assert meta["num_params"] in (architecture.parameters, architecture.parameters_train)
    assert len(meta["categories"]) == architecture.classes
    assert architecture.macs / 1e9 == pytest.approx(meta["_ops"], rel=1e-3, abs=5e-4)


PLAIN = [one for one in CATALOG if "@" not in one.name and one.source.startswith("torchvision:")]


@pytest.mark.parametrize("architecture", PLAIN, ids=lambda one: one.name)
def test_default_weights(architecture: Architecture) -> None:
    """What `--weights pretrained` takes comes with topfive or is torchvision's default; its input is the network's."""
    default = architecture.default_weights
    assert default is not None
    assert default.file or default.tag == published(architecture).DEFAULT.name
    assert architecture.input is default.input


def test_every_architecture_of_the_lectures() -> None:
    """All thirty are there, the weights that are not the default as entries of their own."""
    plain = {name for name in CATALOG.names() if "@" not in name}
    expected = {"lenet5", "alexnet_2012", "alexnet", "googlenet_2014", "googlenet", "inception_v3", "squeezenet1_1"}
    expected |= {"vgg11", "vgg11_lrn", "vgg13", "vgg16_c", "vgg16", "vgg19"}
    expected |= {f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
    expected |= {f"densenet{depth}" for depth in (121, 161, 169, 201)}
    expected |= {f"efficientnet_b{size}" for size in range(8)}

    assert plain == expected | {"tiny"}
    assert {name for name in CATALOG.names() if "@" in name} == {
        f"{name}@IMAGENET1K_V1" for name in ("resnet50", "resnet101", "resnet152", "efficientnet_b1", "squeezenet1_1")
    }


def test_other_weights() -> None:
    """NAME@TAG is the same network with that set and its recipe; with the default's tag it is the plain entry."""
    plain, other = CATALOG["resnet50"], CATALOG["resnet50@IMAGENET1K_V1"]

    assert (other.name, other.source, other.parameters) == ("resnet50@IMAGENET1K_V1", plain.source, plain.parameters)
    assert [weights.tag for weights in other.weight_sets] == ["IMAGENET1K_V1"]
    assert (plain.input.resize, other.input.resize) == (232, 256)
    assert CATALOG["resnet50@IMAGENET1K_V2"] is plain
    assert CATALOG.get("resnet50@IMAGENET1K_V2") is plain
    assert CATALOG.canonical("resnet50@IMAGENET1K_V2") == "resnet50"
    assert CATALOG.canonical("resnet50@IMAGENET1K_V1") == "resnet50@IMAGENET1K_V1"
    with pytest.raises(UnknownModelError, match="did you mean resnet50@IMAGENET1K_V1"):
        CATALOG["resnet50@IMAGENET1K_V9"]


def test_better_weights_are_the_default() -> None:
    """Where there are several sets, the most accurate comes first."""
    for one in CATALOG:
        accuracies = [weights.acc1 for weights in one.weight_sets]
        assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.parametrize("architecture", [one for one in CATALOG if one.training_only], ids=lambda one: one.name)
def test_auxiliary_heads(architecture: Architecture) -> None:
    """parameters_train counts the network as it is trained, with the heads that are not served."""
    bare = dataclasses.replace(architecture, training_only=())

    assert sum(value.numel() for value in build(bare).parameters()) == architecture.parameters_train
    assert architecture.parameters_train > architecture.parameters
    assert all(one.parameters_train == one.parameters for one in CATALOG if not one.training_only)


# What the course's table has of a network. The last line is of single networks: test_alexnet_2012, test_googlenet_2014.
IN_THE_TABLE = {"parameters", "parameters_train", "macs", "year", "input_size", "classes", "depth", "configuration"}
IN_THE_TABLE |= {"paper", "published", "weights", "note", "torchvision"}
IN_THE_TABLE |= {"lrn", "pooling", "activation_maps", "inception", "inception_modules"}


def test_facts_of_the_lectures(shared_data: Path) -> None:
    """Every figure of the course's own table is in the catalog."""
    tables = tomllib.loads((shared_data.parent / "reference" / "architectures.toml").read_text(encoding="utf-8"))
    del tables["arithmetic"]  # of single layers: test_cost
    for name, facts in tables.items():
        one = CATALOG[name]
        assert set(facts) <= IN_THE_TABLE, name
        assert one.source.removeprefix("torchvision:") == facts.get("torchvision", one.source)
        assert facts.get("paper", one.paper) == one.paper
        assert one.note or "note" not in facts
        assert one.parameters == facts["parameters"]
        assert one.parameters_train == facts.get("parameters_train", one.parameters_train)
        assert one.macs == facts.get("macs", one.macs)
        assert (one.year, one.input.crop) == (facts.get("year", one.year), facts.get("input_size", one.input.crop))
        assert (one.classes, one.depth) == (facts.get("classes", 1000), facts.get("depth"))
        assert one.configuration == facts.get("configuration")
        for tag, weights in facts.get("weights", {}).items():
            (own,) = (own for own in one.weight_sets if own.tag == tag)
            assert (own.acc1, own.acc5) == (weights["acc1"], weights["acc5"])
            spec = own.input
            assert (spec.resize, spec.crop, spec.interpolation) == (
                weights["resize"],
                weights["crop"],
                weights["interpolation"],
            )
        rates = {rate for errors in one.published for rate in (errors.top1, errors.top5)}
        published = facts.get("published", {})
        assert {value for key, value in published.items() if key.endswith(("top1", "mnist_error"))} <= rates
        assert {published[key] for key in ("top5", "single_model_top5", "ensemble_top5") if key in published} <= rates
        assert one.published_macs == published.get("macs")
        assert published.get("ilsvrc", "") in (one.ilsvrc or "")
        assert str(published.get("runner_up_top5", "")) in (one.ilsvrc or "")
        protocols = " ".join(errors.protocol for errors in one.published)
        assert all(published[key] in protocols for key in ("protocol", "single_model_protocol") if key in published)


@pytest.mark.parametrize(
    ("line", "key"),
    [("macs = 'many'", "macs"), ("colour = 'red'", "colour"), ("weights = { V1 = { acc1 = 1.0 } }", "acc5")],
)
def test_damaged_table(tmp_path: Path, line: str, key: str) -> None:
    """A wrong value, an unknown key or a missing one in the file is an error that names it."""
    good = ["family = 'f'", "year = 2000", "paper = 'p'", "source = 'm:f'", "parameters = 1", "macs = 1"]
    lines = [one for one in good if one.partition(" ")[0] != line.partition(" ")[0]]
    file = tmp_path / "catalog.toml"
    file.write_text("\n".join(["[net]", *good]), encoding="utf-8")
    assert read_catalog(file)["net"].macs == 1
    file.write_text("\n".join(["[net]", *lines, line]), encoding="utf-8")

    with pytest.raises(ValueError, match=key):
        read_catalog(file)


@pytest.mark.parametrize("channels", list(Channels))
def test_channels_in_the_graph(channels: Channels) -> None:
    """The network gets RGB, BGR or the luma of ITU-R BT.601, normalised with a mean and deviation for each channel."""
    spec = InputSpec(crop=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channels=channels)
    pixels = torch.arange(12, dtype=torch.uint8).view(1, 2, 2, 3) * 20
    seen: list[torch.Tensor] = []

    class Listener(torch.nn.Module):
        """A network that only remembers its input."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image)
            return image.flatten(1)

    ServedNetwork(Listener(), spec)(pixels)
    red, green, blue = pixels.double().permute(3, 0, 1, 2) / 255
    planes = {
        Channels.RGB: [red, green, blue],
        Channels.BGR: [blue, green, red],
        Channels.GREY: [0.299 * red + 0.587 * green + 0.114 * blue],
    }[channels]
    expected = [(plane - spec.mean[index]) / spec.std[index] for index, plane in enumerate(planes)]

    assert (seen[0].double() - torch.stack(expected, dim=1)).abs().max() < 1e-6


def test_lenet5_accuracy_is_the_measured_one() -> None:
    """The catalog's accuracy of the weights that come with topfive is what their training wrote down."""
    record = json.loads((Path(models.__file__).parent / "data" / "lenet5.json").read_text(encoding="utf-8"))
    score = record["test"]["white on black"]
    weights = CATALOG["lenet5"].default_weights

    assert weights is not None
    assert weights.acc1 == round(100 * score["top1"] / score["images"], 3)
    assert weights.acc5 == round(100 * score["top5"] / score["images"], 3)
