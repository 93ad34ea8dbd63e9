"""The options of `topfive export` that build engines or quantize, and the build after the export."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from export.common import ExportError, QuantizationRequest
from export.tensorrt.targets import (
    PRECISIONS,
    BuildRequest,
    BuildRequestError,
    parse_profile,
    rtx_targets,
    tensorrt_targets,
)
from export.terminal import ProgressBar, print_engines, print_line, print_quantized
from models.artifact.engine_plan import Flavour
from models.artifact.files import expand_home
from service.common.gpus import cards
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError

Command = Callable[..., Any]

_DEPENDENT = ("precision", "target", "batch", "calibration", "samples")
_ONLY_TENSORRT, _ONLY_OPENVINO = ("target", "batch"), ("samples",)


def _option(name: str, **attributes: Any) -> Callable[[Command], Command]:
    """An option of an engine; its variable differs from the service's, which may mean something else."""
    variable = "TOPFIVE_ENGINE" if name == "engine" else f"TOPFIVE_ENGINE_{name.upper()}"
    return click.option(f"--{name}", envvar=variable, show_envvar=True, **attributes)


def engine_options(command: Command) -> Command:
    """Add the options of an engine to `command`, which gets them as keyword arguments."""
    added = (
        _option(
            "engine",
            type=click.Choice([*(flavour.value for flavour in Flavour), Runtime.OPENVINO.value]),
            show_default="none",
            help="Build an engine for NVIDIA GPUs: tensorrt on the GPU that runs it, tensorrt-rtx anywhere; or "
            "quantize the graph for CPUs: openvino",
        ),
        _option(
            "precision",
            type=click.Choice([precision.value for precision in PRECISIONS]),
            show_default="fp16; int8 with openvino, which runs the other precisions without an engine",
            help="Precision inside the engine",
        ),
        _option(
            "target",
            metavar="this|sm75,sm86,...",
            show_default="this, or without a GPU sm75,sm86,sm89,sm120; in f32 and int8 those from sm86",
            help="Cards to build for by compute capability; Turing (sm75) gets a plan of its own",
        ),
        _option(
            "batch",
            metavar="SMALLEST,BEST,LARGEST",
            show_default="1,8,32, or what the graph takes",
            help="Batch sizes of the engine",
        ),
        _option(
            "calibration",
            metavar="DIR",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            show_default="none; with openvino 10 photos that come with topfive",
            help="Folder of photos to calibrate int8 on, 100 or more, such as the model will see",
        ),
        _option(
            "samples",
            type=click.IntRange(min=10),
            show_default="300",
            help="With openvino: most photos to calibrate on, beside those kept aside for the check",
        ),
        click.option(
            "--cache",
            envvar="TOPFIVE_CACHE",
            show_envvar=True,
            type=click.Path(path_type=Path, file_okay=False),
            default="~/.cache/topfive",
            show_default=True,
            help="Folder for measurements of this machine, which may be deleted at any time",
        ),
    )
    for one in reversed(added):
        command = one(command)
    return command


def read_request(values: dict[str, Any]) -> BuildRequest | QuantizationRequest | None:
    """The engines that these options ask for, None without --engine. Raises click.UsageError if they do not fit."""
    if values["engine"] is None:
        if given := [f"--{name}" for name in _DEPENDENT if values[name] is not None]:
            raise click.UsageError(f"{', '.join(given)} without --engine; name openvino, tensorrt or tensorrt-rtx")
        return None
    openvino = values["engine"] == Runtime.OPENVINO
    if given := [f"--{name}" for name in (_ONLY_TENSORRT if openvino else _ONLY_OPENVINO) if values[name] is not None]:
        raise click.UsageError(f"{', '.join(given)} does not apply to --engine {values['engine']}")
    if openvino:
        return _read_quantization(values)
    flavour, precision = Flavour(values["engine"]), Precision(values["precision"] or Precision.FP16)
    if (precision is Precision.INT8) != (values["calibration"] is not None):
        raise click.UsageError("--precision int8 and --calibration DIR, a folder of photos, go together")
    try:
        profile = parse_profile(values["batch"]) if values["batch"] is not None else None
        groups, card = _targets(flavour, precision, values["target"])
    except BuildRequestError as error:
        raise click.UsageError(str(error)) from error
    except EngineUnavailableError as error:
        raise click.ClickException(str(error)) from error
    cache = expand_home(values["cache"])
    return BuildRequest(flavour, precision, groups, cache, profile, card, values["calibration"])


def _read_quantization(values: dict[str, Any]) -> QuantizationRequest:
    if values["precision"] not in (None, Precision.INT8):
        raise click.UsageError(
            f"OpenVINO runs {values['precision']} without an engine, if it can; --engine openvino is for int8"
        )
    given = {name: values[name] for name in ("calibration", "samples") if values[name] is not None}
    return QuantizationRequest(**given)


def _targets(flavour: Flavour, precision: Precision, text: str | None) -> Any:
    from export.tensorrt.builder import known_targets
    from service.engines.tensorrt.packages import module

    trt, found = module(flavour), cards()
    if flavour is Flavour.TENSORRT:
        return tensorrt_targets(text, found)
    return rtx_targets(text, precision, known_targets(trt), found), None


def build_one(name: str, root: Path, request: BuildRequest | QuantizationRequest, missing: bool) -> bool:
    """Build engines into the newest artifact of `name` and print the result. Returns False if that fails.

    With `missing`, plans that the same version built from the same graph are kept, and so is an int8 graph.
    """
    if isinstance(request, QuantizationRequest):
        return _quantize_one(name, root, request, missing)
    from export.tensorrt.build import build_engines, present_plans
    from models.artifact.artifact import ArtifactError, load
    from models.weights.weights import WeightsError
    from service.engines.tensorrt.packages import module

    try:
        trt, artifact = module(request.flavour), load(root, name)
        if missing:
            present = present_plans(artifact, request, str(trt.__version__))
            for plan in present:
                print_line(f"{name}: built already, {escape(str(plan.path))}")
            built = {plan.record.targets for plan in present}
            left = tuple(group for group in request.groups if tuple(map(str, group)) not in built)
            if not left:
                return True
            request = replace(request, groups=left)
        with ProgressBar(name) as bar:
            done = build_engines(artifact, request, trt, bar)
    except (ArtifactError, EngineUnavailableError, ExportError, WeightsError, OSError) as error:
        print_line(f"[bold red]no engine was built for {name}:[/] {escape(_reason(error, root / name))}")
        return False
    print_line(f"[bold]{name}[/] has {len(done.plans)} new engine{'s' if len(done.plans) > 1 else ''}")
    print_engines(done.plans, done.parity)
    if done.failure is not None:
        reason = escape(_reason(done.failure, root / name))
        print_line(f"[bold red]the next engine of {name} was not built:[/] {reason}")
    return done.failure is None


def _quantize_one(name: str, root: Path, request: QuantizationRequest, missing: bool) -> bool:
    from export.quantization import quantize
    from models.artifact.artifact import ArtifactError, load
    from service.engines.selection.int8 import int8_graph

    try:
        artifact = load(root, name)
        if missing:
            with suppress(EngineUnavailableError):  # without a graph, or with a damaged one
                print_line(f"{name}: quantized already, {escape(str(int8_graph(artifact)))}")
                return True
        with ProgressBar(name) as bar:
            done = quantize(artifact, request, bar)
    except (ArtifactError, EngineUnavailableError, ExportError, OSError) as error:
        print_line(f"[bold red]{name} was not quantized:[/] {escape(_reason(error, root / name))}")
        return False
    print_quantized(name, done)
    return True


def _reason(error: Exception, folder: Path) -> str:
    room = f"; {folder} must be writable and have room for graphs and engines" if isinstance(error, OSError) else ""
    return f"{error}{room}"
