"""Decides whether plans (engines built for NVIDIA GPUs) fit this machine, what differs, and what to run then.

It compares records, versions and GPUs. No plan is read or loaded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.artifact.artifact import GRAPH, Artifact, artifacts_option
from models.artifact.engine_plan import EnginePlan, Flavour, PlanRecord, read_plans
from service.common.gpus import Card, Cards, cards, driver_version
from service.common.types import Precision
from service.engines.base import INSTALL
from service.engines.tensorrt.packages import installed_version

PREFERRED = (Precision.FP16, Precision.F32)
"""The precisions of plans that `auto` takes, best first. int8 loses accuracy, so the user must ask for it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What plans must fit: the GPUs, their driver, and the installed version of each flavour of TensorRT."""

    cards: Cards
    driver: str | None
    versions: Mapping[Flavour, str]

    @property
    def expects_cards(self) -> bool:
        """Whether this machine should serve from GPUs: it has some, or it has a driver and a flavour of TensorRT."""
        return bool(self.cards.found) or (self.driver is not None and bool(self.versions))

    @property
    def best_flavour(self) -> Flavour:
        """The flavour to build for: TensorRT, which is faster, unless only TensorRT for RTX is installed."""
        only_rtx = Flavour.TENSORRT not in self.versions and Flavour.TENSORRT_RTX in self.versions
        return Flavour.TENSORRT_RTX if only_rtx else Flavour.TENSORRT

    def only(self, card: Card | None) -> "Machine":
        """The same machine with this GPU alone, or unchanged for None."""
        return self if card is None else replace(self, cards=Cards((card,)))


NO_MACHINE = Machine(Cards((), "GPUs were not looked for"), None, {})
"""Used if no requested runtime needs a GPU."""


def this_machine() -> Machine:
    """This machine with the GPUs that CUDA reports."""
    versions = {flavour: found for flavour in Flavour if (found := installed_version(flavour)) is not None}
    here, driver = cards(), driver_version()
    if not here.found and driver is None:
        here = Cards((), "there is no NVIDIA driver")  # a driver that is too old is reported by CUDA itself
    return Machine(here, driver, versions)


@dataclass(frozen=True, slots=True)
class Source:
    """The artifact that plans are compared with: its name, its root folder, and its present model.onnx."""

    name: str
    root: Path
    graph_sha256: str

    @classmethod
    def of(cls, artifact: Artifact) -> "Source":
        manifest = artifact.manifest
        return cls(manifest.name, artifact.folder.parent.parent, manifest.files.get(GRAPH, ""))

    def build(self, flavour: Flavour, precision: str = Precision.FP16) -> str:
        """The command that builds an engine for the GPU of the machine that runs it."""
        photos = " --calibration PHOTOS" if precision == Precision.INT8 else ""
        return (
            f"topfive export {self.name} --engine {flavour} --precision {precision}{photos} --target this"
            f"{artifacts_option(self.root)}"
        )

    def nothing_built(self, flavour: Flavour, machine: Machine, asked: Precision) -> str:
        """The message if the artifact has no plan of `flavour`, with the commands that build one."""
        precision = Precision.FP16 if asked is Precision.AUTO else asked
        install = "" if flavour in machine.versions else f"{INSTALL[flavour]} and then "
        return f"no {flavour} engine is built for {self.name}; run: {install}{self.build(flavour, precision)}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which a plan and the machine differ. `remedy` is the command that fixes it, or ''."""

    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """A plan, the GPUs that it fits, and the differences. It fits if there are none."""

    plan: EnginePlan
    cards: tuple[Card, ...]
    differences: tuple[Difference, ...]

    @property
    def fits(self) -> bool:
        return not self.differences

    @property
    def card(self) -> Card:
        """The GPU to open a fitting plan on: the one with the most free memory."""
        return max(self.cards, key=lambda one: one.free_bytes)

    @property
    def reason(self) -> str:
        """All differences in one line, or '' if the plan fits."""
        return "; ".join(difference.what for difference in self.differences)

    @property
    def remedy(self) -> str:
        """The commands to run, each once, or ''."""
        return " and then ".join(dict.fromkeys(one.remedy for one in self.differences if one.remedy))


def misfits(fits: Iterable[Fit]) -> list[str]:
    """A sentence for each reason why plans do not fit: their names, the reason, the command."""
    names: dict[tuple[str, str], list[str]] = {}
    for fit in fits:
        if not fit.fits:
            names.setdefault((fit.reason, fit.remedy), []).append(fit.plan.record.stem)
    return [
        f"{' and '.join(stems)} {'does' if len(stems) == 1 else 'do'} not fit ({reason})"
        + (f"; run: {remedy}" if remedy else "")
        for (reason, remedy), stems in names.items()
    ]


def survey(artifact: Artifact, machine: Machine, asked: Precision) -> tuple[tuple[Fit, ...], tuple[str, ...]]:
    """Every plan in the artifact, the best first, and the errors of records that cannot be read."""
    plans, damage = read_plans(artifact.folder)
    fits = [judge(plan, Source.of(artifact), machine, asked, damage=_damage(plan)) for plan in plans]
    return tuple(sorted(fits, key=_rank)), tuple(damage)


def judge(plan: EnginePlan, source: Source, machine: Machine, asked: Precision, damage: str = "") -> Fit:
    """Compare the record of `plan` with the machine. `damage` is a known problem with the plan's file."""
    record = plan.record
    build = source.build(record.flavour, record.precision)
    on, differences = _cards(record, machine, build)
    differences += _versions(record, machine, build)
    if record.graph_sha256 != source.graph_sha256:
        differences.append(Difference("built from another model.onnx", build))
    if damage:
        differences.append(Difference(damage, build))
    if asked is Precision.AUTO and record.precision not in PREFERRED:
        what = f"auto does not take {record.precision}: it must be asked for"
        differences.append(Difference(what, "topfive serve --precision int8"))
    if asked is not Precision.AUTO and record.precision != asked:
        what = f"it computes in {record.precision}, and {asked} is asked for"
        differences.append(Difference(what, source.build(record.flavour, asked)))
    if not record.profile.smallest <= 1 <= record.profile.largest:
        what = f"it takes batches of {record.profile.smallest} to {record.profile.largest}, and one must be among them"
        differences.append(Difference(what, f"{build} --batch 1,8,32"))
    return Fit(plan, on, tuple(differences))


def _cards(record: PlanRecord, machine: Machine, build: str) -> tuple[tuple[Card, ...], list[Difference]]:
    """The GPUs that the plan fits, or the reasons why it fits none."""
    found = machine.cards.found
    if not found:
        return (), [Difference(f"no NVIDIA GPU can be used here: {machine.cards.reason}")]
    capable = tuple(card for card in found if str(card.target) in record.targets)
    if not capable:
        return (), [Difference(f"built for {', '.join(record.targets)}; here is {_named(found)}", build)]
    # A plan of TensorRT runs only on the GPU model that built it; a plan for RTX on any GPU of its targets.
    if record.flavour is Flavour.TENSORRT and record.card is not None:
        capable, named = tuple(card for card in capable if card.name == record.card), capable
        if not capable:
            return (), [Difference(f"built on {record.card}; here is {_named(named)}", build)]
    return capable, []


def _versions(record: PlanRecord, machine: Machine, build: str) -> list[Difference]:
    """Differences in installed packages and versions. Without a GPU nothing need be installed."""
    installed = machine.versions.get(record.flavour)
    if not machine.cards.found or installed == record.version:
        return []
    if installed is None:
        return [Difference(f"{record.flavour} is not installed", INSTALL[record.flavour])]
    return [Difference(f"built with {record.flavour} {record.version}; {installed} is installed", build)]


def _named(found: Sequence[Card]) -> str:
    return ", ".join(dict.fromkeys(f"{card.name} ({card.target})" for card in found))


def _damage(plan: EnginePlan) -> str:
    """A problem with the file that is visible without reading it, or ''. Loading it compares its sha256."""
    try:
        size = plan.path.stat().st_size
    except OSError as error:
        return f"{plan.path.name} cannot be read ({error.strerror})"
    return "" if size == plan.record.size_bytes else f"{plan.path.name} is damaged: {size:,} bytes, not as recorded"


def _rank(fit: Fit) -> tuple[int, int, str]:
    """Faster precisions first, then plans made for fewer GPUs."""
    record = fit.plan.record
    order = [str(one) for one in PREFERRED]
    precision = order.index(record.precision) if record.precision in order else len(order)
    return precision, len(record.targets), str(fit.plan.path)
