"""The catalog: what it refuses, what it says of names it does not know, and its figures against torchvision's own."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from torchvision.models import get_model_weights

from models.catalog import CATALOG, Architecture, Catalog, InputSpec, UnknownModelError, WeightSet

PUBLISHED = [(entry, weights) for entry in CATALOG for weights in entry.weight_sets if weights.file is None]
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


def test_first_models() -> None:
    """The models that the service promises are there, and the names of all are plain: they become folders."""
    assert {"googlenet", "alexnet", "resnet50", "squeezenet1_1", "tiny"} <= set(CATALOG.names())
    for name in CATALOG.names():
        assert name.isascii()
        plain, _, tag = name.partition("@")
        assert plain == plain.lower()
        assert not tag or tag.startswith("IMAGENET1K_V")
        assert plain.replace("_", "").isalnum()


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
    """A name like no other raises with all that there are."""
    with pytest.raises(UnknownModelError, match="known: alexnet, alexnet_2012") as caught:
        CATALOG[name]

    assert caught.value.nearest == []


@pytest.mark.parametrize("frozen", [CATALOG["googlenet"], CATALOG["googlenet"].weight_sets[0], InputSpec()])
def test_frozen(frozen: Architecture | WeightSet | InputSpec) -> None:
    """No entry, set of weights or recipe can be changed, and equal ones are equal."""
    for field in dataclasses.fields(frozen):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field.name, None)
    assert dataclasses.replace(frozen) == frozen


def test_options_are_frozen() -> None:
    """The arguments of a builder cannot be changed either."""
    for one in CATALOG:
        with pytest.raises(TypeError):
            one.options["aux_logits"] = False  # type: ignore[index]


@pytest.mark.parametrize(("architecture", "weights"), PUBLISHED, ids=IDS)
def test_figures_of_torchvision(architecture: Architecture, weights: WeightSet) -> None:
    """Accuracy and parameters of every published set of weights are those that torchvision publishes with it."""
    meta = published(architecture)[weights.tag].meta

    assert meta["_metrics"] == {"ImageNet-1K": {"acc@1": weights.acc1, "acc@5": weights.acc5}}
    assert meta["num_params"] in (architecture.parameters, architecture.parameters_train)
    assert len(meta["categories"]) == architecture.classes


PLAIN = [one for one in CATALOG if "@" not in one.name and one.source.startswith("torchvision:")]


@pytest.mark.parametrize("architecture", PLAIN, ids=lambda one: one.name)
def test_default_weights(architecture: Architecture) -> None:
    """What `--weights pretrained` takes is torchvision's default, and its input is the architecture's."""
    default = architecture.default_weights
    assert default is not None
    assert default.tag == published(architecture).DEFAULT.name
    assert architecture.input is default.input


def test_without_published_weights() -> None:
    """A network that nobody trained has no default weights, and an input of its own."""
    assert CATALOG["tiny"].default_weights is None
    assert CATALOG["tiny"].input == InputSpec(resize=36, crop=32)
