"""The layers of the design: imports go down only, each third-party package has its place, and files stay small."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "proto", "service", "loadgen", "export")
GENERATED = ("proto.inference", "proto.topfive.v1")

# The layer of each package. Within a layer packages know nothing of each other. `export` and `loadgen` stand apart:
# what they may import is a test of its own.
LAYERS = {
    "service.cli": 9,
    "service.server": 8,
    "service.gateway": 7,
    "service.offline": 7,
    "service.rest": 7,
    "service.rpc": 7,
    "service.inference": 6,
    "service.repository": 5,
    "service.batching": 4,
    "service.preprocessing": 3,
    "service.engines": 2,
    "service.common": 1,
    "models": 0,
    "proto": 0,
}

# Who may import a package of others, anywhere in the file
HOMES = {
    "torch": (
        "export",
        "models.analysis",
        "models.architectures",
        "models.build",
        "models.weights",
        "service.engines.torch",
    ),
    "torchvision": ("export", "models.build", "models.weights"),
    "safetensors": ("export", "models.architectures.train_lenet5", "models.weights"),
    "sklearn": ("models.architectures.train_lenet5",),
    "onnx": ("export", "models.weights"),
    "nncf": ("export.quantization",),
    "openvino": ("export.quantization", "service.engines.openvino"),
    "onnxruntime": ("export", "models.weights", "service.engines.onnxruntime"),
    "grpc": (*GENERATED, "loadgen", "service.gateway", "service.rpc", "service.server.health_probe"),
    "grpc_health": ("service.rpc", "service.server.health_probe"),
    "grpc_reflection": ("service.rpc",),
    "fastapi": ("service.rest",),
    "fastapi_offline": ("service.rest",),
    "starlette": ("service.rest", "service.server.asgi"),
    "uvicorn": ("service.rest",),
    "uvloop": ("loadgen", "service.server.process"),
    "prometheus_client": ("service.common.metrics",),
    "click": ("export", "loadgen", "service.cli"),
    "rich": ("export", "loadgen", "models.architectures.train_lenet5", "service.cli"),
    "cykooz_resizer": ("service.preprocessing.transforms",),
    "PIL": ("loadgen", "models.architectures", "service.preprocessing", "service.common.sample_photo"),
    "pydantic": (
        "export.importing.recipe",
        "models",
        "service.cli.options",
        "service.common",
        "service.engines.selection",
        "service.rest",
    ),
    "pyarrow": ("service.offline",),
    "httptools": ("loadgen",),
    "multipart": ("service.rest.image_request", "service.rest.torchserve"),
}


class When(Enum):
    """When an import runs: with its module, inside a function, or never (only type checkers read it)."""

    START = "start"
    CALL = "call"
    TYPING = "typing"


@dataclass(frozen=True, slots=True)
class Import:
    """One import: a module of this project, or the first part of another's name."""

    module: str
    target: str
    when: When


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    """Every import below `node`, and when it runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, when
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from ((found, When.TYPING) for found, _ in statements(child, when))
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from statements(child, When.CALL)
        else:
            yield from statements(child, when)


def targets(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """What it imports, as modules of this project or the first part of others' names."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        assert statement.level == 0, "relative imports hide what the layers are"
        base = statement.module or ""
        names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in statement.names]
    for name in names:
        yield name if name.partition(".")[0] in PACKAGES else name.partition(".")[0]


@cache
def imports() -> tuple[Import, ...]:
    """Every import of the project."""
    return tuple(
        Import(module, target, when)
        for module, path in modules().items()
        for statement, when in statements(ast.parse(path.read_text(encoding="utf-8")), When.START)
        for target in targets(statement)
    )


def inside(module: str, packages: Iterable[str]) -> bool:
    """Whether it is one of them, or in one of them."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer(module: str) -> int:
    """Its layer; the bare package `service` has none and holds nothing."""
    names = [name for name in LAYERS if inside(module, [name])]
    assert names, f"{module} has no layer: give it one in LAYERS"
    return LAYERS[max(names, key=len)]


def started_by(module: str) -> set[str]:
    """All that runs, of this project and of others, when that module is imported."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [one.target for one in imports() if one.module == name and one.when is When.START]
            waiting += [parent for parent in modules() if name.startswith(f"{parent}.")]
    return reached


def imported_by(statement: str) -> set[str]:
    """First parts of the names of all modules that a new process has after that statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules if sys.modules[name]}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_parser_sees() -> None:
    """The imports that these tests reason about are found: at the top, in functions, and for type checkers only."""
    assert Import("service.inference.topk", "models.labels", When.START) in imports()
    assert Import("service.inference.local", "service.preprocessing.preprocessor", When.START) in imports()
    assert Import("models.build", "torchvision", When.CALL) in imports()
    assert Import("export.importing.command", "export.importing.pipeline", When.TYPING) in imports()
    assert Import("service.engines.selection.opening", "service.engines.torch", When.CALL) in imports()
    assert {"torch", "models.catalog", "numpy"} <= started_by("service.engines.torch")


def test_imports_go_down() -> None:
    """No module imports one of a higher layer, at its start or in a function."""
    up = [
        f"{one.module} ({layer(one.module)}) imports {one.target} ({layer(one.target)})"
        for one in imports()
        if inside(one.module, ["service", "models", "proto"])
        and one.target in modules()
        and layer(one.target) > layer(one.module)
    ]
    assert up == []


def test_every_module_has_a_layer() -> None:
    """A new module of the service finds its layer, and no layer is kept for a module that is gone."""
    for module in modules():
        if module != "service" and not inside(module, ["export", "loadgen"]):
            assert layer(module) >= 0
    assert [name for name in LAYERS if name not in modules()] == []
    assert ast.parse(modules()["service"].read_text()).body[1:] == []


def test_what_export_imports() -> None:
    """Export checks on the code that serves, up to the engines; no flow, no transport, no settings.

    It reads labelled photos as `topfive evaluate` does.
    """
    high = [one for one in imports() if inside(one.module, ["export"]) and inside(one.target, ["service"])]

    assert high
    allowed = ("service", "service.offline.images")
    assert [one for one in high if one.target not in allowed and layer(one.target) > 3] == []


def test_nobody_imports_export() -> None:
    """The serving install has no torch: nothing outside `export` imports it."""
    assert [one for one in imports() if inside(one.target, ["export"]) and not inside(one.module, ["export"])] == []


def test_nobody_imports_training() -> None:
    """Training is a command of its own: nothing else needs what it needs."""
    training = ["models.architectures.draw_digits", "models.architectures.train_lenet5"]
    assert [one for one in imports() if inside(one.target, training) and not inside(one.module, training)] == []


def test_transports_are_apart() -> None:
    """REST knows nothing of gRPC, nor gRPC of REST, and only gRPC, as server and as client, knows its contract."""
    for one in imports():
        if inside(one.module, ["service.rest"]):
            assert not inside(one.target, ["service.gateway", "service.rpc"]), one
        if inside(one.module, ["service.gateway", "service.rpc"]):
            assert not inside(one.target, ["service.rest"]), one
        if inside(one.target, ["proto"]):
            assert inside(one.module, ["loadgen.grpc_connection", "service.gateway", "service.rpc", "proto"]), one


@pytest.mark.parametrize("package", HOMES)
def test_homes(package: str) -> None:
    """Each third-party package is imported only where it belongs, in functions as well."""
    users = {one.module for one in imports() if one.target == package and one.when is not When.TYPING}

    assert {user for user in users if not inside(user, HOMES[package])} == set()


@pytest.mark.parametrize(
    "module",
    [
        "models.catalog",
        "models.artifact.artifact",
        "models.labels",
        "models.analysis.cost",
        "models.analysis.layer_table",
        "models.analysis.stages",
    ],
)
def test_metadata_starts_without_torch(module: str) -> None:
    """What describes models loads no torch, and nothing of the service."""
    started = started_by(module)

    assert not started & {"torch", "torchvision", "safetensors", "numpy"}
    assert not [name for name in started if inside(name, ["service", "export"])]


def test_batcher_knows_no_engine() -> None:
    """The batcher is given a function: it reaches no engine, no model and no image."""
    own = {name for name in started_by("service.batching.batcher") if inside(name, PACKAGES)}

    assert {name for name in own if not inside(name, ["service.batching", "service.common"])} == {"service"}


def test_classifier_knows_no_transport() -> None:
    """The flow reaches neither FastAPI nor protobuf."""
    started = started_by("service.inference.local")

    assert not [name for name in started if inside(name, ["service.rest", "service.rpc", "proto"])]
    assert not started & {"fastapi", "starlette", "grpc", "google"}


def test_the_load_generator_knows_no_server() -> None:
    """It measures any server, so it reaches nothing of this one but the contract of its gRPC, a clock and a photo."""
    own = {one.target for one in imports() if inside(one.module, ["loadgen"]) and inside(one.target, PACKAGES)}

    assert own
    assert {name for name in own if not inside(name, ["loadgen", "service.common", "proto"])} == set()


def test_only_the_top_reads_settings() -> None:
    """Everything below gets what it needs as arguments, not the settings."""
    users = {one.module for one in imports() if one.target == "service.common.settings"}

    tops = ["service.cli", "service.server"]
    assert [user for user in users if not inside(user, tops)] == []


def test_no_cycle() -> None:
    """No module imports itself by way of others, whichever is imported first."""
    for module in modules():
        for one in imports():
            if one.module == module and one.when is When.START and one.target in modules():
                assert module not in started_by(one.target), f"{module} and {one.target} import each other"


def test_serving_starts_without_torch() -> None:
    """A process that has imported the whole service, both transports and the command line has no torch and no ONNX."""
    loaded = imported_by("import service.server.app, service.cli.serve")

    assert {"service", "models", "proto", "fastapi", "grpc"} <= loaded
    assert not loaded & {"torch", "torchvision", "onnx", "onnxscript", "safetensors", "export"}


def test_server_starts_without_other_commands() -> None:
    """`topfive serve` loads nothing that only tables and progress bars need, nor any runtime before a model asks."""
    loaded = imported_by("import service.cli.main, service.cli.serve, service.server.app")

    assert {"service", "fastapi", "grpc"} <= loaded
    assert not loaded & {"rich", "onnxruntime", "openvino", "cuda", "pyarrow"}


def test_gateway_starts_without_engines() -> None:
    """A gateway has no runtime of any engine, and no network."""
    loaded = imported_by("import service.server.gateway")

    assert {"service", "fastapi", "grpc"} <= loaded
    assert not loaded & {"openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "torch", "onnx", "export"}


def test_probe_imports_little() -> None:
    """A health check by HTTP loads nothing but the standard library; it runs every few seconds."""
    loaded = imported_by("import service.server.health_probe")

    assert "service" in loaded
    assert not loaded & {"grpc", "google", "numpy", "pydantic", "fastapi", "click", "models", "proto"}


def test_export_command_starts_without_torch() -> None:
    """`topfive export --help` and `topfive import --help` need not wait for torch, nor have it."""
    assert not imported_by("import export.command, export.importing.command") & {
        "torch",
        "torchvision",
        "onnx",
        "safetensors",
    }


def test_import_needs_no_torch() -> None:
    """An import loads ONNX and its runtime, and neither torch nor the networks of the catalog."""
    loaded = imported_by("import export.importing.pipeline")

    assert {"onnx", "onnxruntime"} <= loaded
    assert not loaded & {"torch", "torchvision", "safetensors"}


WRITTEN = [path for name, path in sorted(modules().items()) if not inside(name, GENERATED)]


def written() -> Iterator[object]:
    """Every file that a person wrote."""
    for path in WRITTEN:
        name = str(path.relative_to(ROOT))
        yield pytest.param(path, id=name)


@pytest.mark.parametrize("path", list(written()))
def test_file_length(path: Path) -> None:
    """A file has at most 350 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_class_names() -> None:
    """The name of a class that other modules may import occurs once in the packages that are installed."""
    source = [path for path in WRITTEN if "tests" not in path.relative_to(ROOT).parts]
    nodes = [node for path in source for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))

    assert [name for name, count in names.items() if count > 1] == []
    assert len(names) > 200


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_function_length() -> None:
    """A function has at most 60 lines, its docstring among them."""
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in WRITTEN
        for node in functions(path)
        if (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert long == []


def test_signatures() -> None:
    """A function takes at most 8 arguments, `self` aside."""
    wide = []
    for path in WRITTEN:
        for node in functions(path):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            starred = [one for one in (node.args.vararg, node.args.kwarg) if one]
            names = [one.arg for one in named + starred if one.arg not in ("self", "cls")]
            if len(names) > 8:
                wide.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert wide == []


def test_docstrings() -> None:
    """Every module, and every public class and function, says what it is for."""
    silent = []
    for path in WRITTEN:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            silent.append(str(path.relative_to(ROOT)))
        named = [one for one in tree.body if isinstance(one, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
        public = [one for one in named if not one.name.startswith("_")]
        silent += [f"{path.relative_to(ROOT)}:{one.lineno}" for one in public if not ast.get_docstring(one)]
    assert silent == []
