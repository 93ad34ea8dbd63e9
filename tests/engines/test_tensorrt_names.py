"""Every name of TensorRT's API that the code uses is one of TensorRT 11.4 and of TensorRT for RTX, without a card."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.artifact.engine_plan import Flavour
from service.engines.tensorrt.packages import is_installed, module

ROOT = Path(__file__).resolve().parents[2]
API = json.loads((Path(__file__).parents[1] / "data" / "tensorrt_11_4.json").read_text())
MODULE = "the module"

# Which variable holds what of TensorRT, by file. `trt` and `_trt` are the module everywhere.
HOLDS = {
    "export/tensorrt/builder.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "error": "ParserError",
        "image": "ITensor",
        "profile": "IOptimizationProfile",
        "known": "ITimingCache",
        "config.get_timing_cache()": "ITimingCache",
        "plan": "IHostMemory",
    },
    "service/engines/tensorrt/packages.py": {"severity": "ILogger"},
    "service/engines/tensorrt/plan.py": {
        "self._runtime": "Runtime",
        "self._engine": "ICudaEngine",
        "engine": "ICudaEngine",
        "self._config": "IRuntimeConfig",
        "self._cache": "IRuntimeCache",
    },
    "service/engines/tensorrt/slot.py": {"self._context": "IExecutionContext"},
}
# What TensorRT for RTX has and TensorRT has not; asked of the real module alone.
RTX_ONLY = {
    (MODULE, "ComputeCapability"),
    (MODULE, "CudaGraphStrategy"),
    (MODULE, "DynamicShapesKernelSpecializationStrategy"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    ("DynamicShapesKernelSpecializationStrategy", "LAZY"),
    ("IRuntimeCache", "deserialize"),
    ("IRuntimeCache", "serialize"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "set_runtime_cache"),
}
_TELLING = ("ICudaEngine", "IExecutionContext", "IBuilderConfig", "Builder", "OnnxParser", "Runtime")


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """A name of TensorRT, asked of a class of its own or of the module."""

    holder: str
    name: str
    place: str


def files() -> Iterator[tuple[str, ast.Module]]:
    """Every file that may use TensorRT, by its path."""
    for folder in ("export", "service/engines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def is_module(node: ast.expr) -> bool:
    """Whether it is TensorRT's module by its name."""
    return ast.unparse(node).rpartition(".")[2] in ("trt", "_trt")


def holder(node: ast.expr, holds: dict[str, str]) -> str | None:
    """The class of TensorRT's that this expression is, or has the type of; None where it is none."""
    if is_module(node):
        return MODULE
    if (known := holds.get(ast.unparse(node))) is not None:
        return known
    if isinstance(node, ast.Attribute) and is_module(node.value):
        return node.attr  # trt.BuilderFlag, an enum or a class
    return None


def uses(path: str, tree: ast.Module) -> Iterator[Use]:
    """Every name asked of TensorRT's objects, and every method that a class of ours puts in the place of its own."""
    holds = HOLDS.get(path, {})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            if (owner := holder(node.value, holds)) is not None:
                yield Use(owner, node.attr, f"{path}:{node.lineno}")
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                if isinstance(base, ast.Attribute) and is_module(base.value):
                    own = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name[0] != "_"]
                    yield from (Use(base.attr, one.name, f"{path}:{one.lineno}") for one in own)


ALL_USES = [use for path, tree in files() for use in uses(path, tree)]


def in_11_4(use: Use) -> bool:
    """Whether TensorRT 11.4 has it."""
    names = API["module"] if use.holder == MODULE else API["names"].get(use.holder, [])
    return use.name in names


def test_every_entry_of_the_lists_is_used() -> None:
    """The code asks for each name that only TensorRT for RTX has, and each listed variable is in its file."""
    assert {(use.holder, use.name) for use in ALL_USES} >= RTX_ONLY
    for path, holds in HOLDS.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert [name for name in holds if not re.search(rf"(?<![\w.]){re.escape(name)}", text)] == []


def test_no_file_is_left_out() -> None:
    """A method that only TensorRT's objects have is asked of none that is not known as one."""
    telling = {name for kind in _TELLING for name in API["names"][kind] if name.count("_") >= 2}
    found = {(use.place, use.name) for use in ALL_USES}
    strange = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, tree in files()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in telling
        and (f"{path}:{node.lineno}", node.attr) not in found
    ]
    assert strange == []


@pytest.mark.parametrize("use", sorted({Use(use.holder, use.name, "") for use in ALL_USES}), ids=lambda use: use.name)
def test_tensorrt_11_4_has_it(use: Use) -> None:
    """TensorRT 11.4 has each name, but for those that only TensorRT for RTX has."""
    assert in_11_4(use) != ((use.holder, use.name) in RTX_ONLY)


def test_rtx_has_them_all() -> None:
    """The real module of TensorRT for RTX has each name, on the class that the code asks it of."""
    if not is_installed(Flavour.TENSORRT_RTX):
        pytest.skip("TensorRT for RTX is not installed; run: pip install '.[tensorrt-rtx]'")
    trt = module(Flavour.TENSORRT_RTX)
    lacking = [
        f"{use.place} {use.holder}.{use.name}"
        for use in ALL_USES
        if not hasattr(trt if use.holder == MODULE else getattr(trt, use.holder, None), use.name)
    ]
    assert lacking == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("config.set_flagg(1)", Use("IBuilderConfig", "set_flagg", "export/tensorrt/builder.py:1")),
        ("trt.BuilderFlag.FP16", Use("BuilderFlag", "FP16", "export/tensorrt/builder.py:1")),
        ("trt.IInt8Calibrator", Use(MODULE, "IInt8Calibrator", "export/tensorrt/builder.py:1")),
        ("self._trt.Buildr(log)", Use(MODULE, "Buildr", "export/tensorrt/builder.py:1")),
        ("config.get_timing_cache().save()", Use("ITimingCache", "save", "export/tensorrt/builder.py:1")),
        ("class A(trt.ILogger):\n    def logg(self): pass", Use("ILogger", "logg", "export/tensorrt/builder.py:2")),
    ],
)
def test_a_wrong_name_would_be_found(code: str, found: Use) -> None:
    """A name that there is not, or that TensorRT 11 removed, is seen where it is asked for and is not in the API."""
    seen = list(uses("export/tensorrt/builder.py", ast.parse(code)))

    assert found in seen
    assert not in_11_4(found)
