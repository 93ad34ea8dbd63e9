"""Whether engines built for NVIDIA cards fit this machine, what differs where they do not, and what to run then.

Judged from records, versions and cards: no plan is read and none is loaded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.artifact.artifact import GRAPH, Manifest
from models.artifact.engine_plan import EnginePlan, Flavour, PlanRecord, read_plans
from service.common.gpus import Card, Cards, cards, driver_version
from service.common.types import Precision
from service.engines.tensorrt.packages import INSTALL, installed_version

PREFERRED = (Precision.FP16, Precision.F32)
"""What `auto` takes of the plans that fit, best first. int8 gives up accuracy: it must be asked for."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What plans must fit: the cards, their driver, and the version of each flavour that is installed."""

    cards: Cards
    driver: str | None
    versions: Mapping[Flavour, str]

    @property
    def expects_cards(self) -> bool:
        """Whether its owner counts on cards: they are there, or a driver and a flavour to use them with."""
        return bool(self.cards.found) or (self.driver is not None and bool(self.versions))

    def only(self, card: Card | None) -> "Machine":
        """The same with this card alone; None leaves it as it is."""
        return self if card is None else replace(self, cards=Cards((card,)))


NO_MACHINE = Machine(Cards((), "cards were not looked for"), None, {})
"""Where nothing that is asked for needs a card."""


@dataclass(frozen=True, slots=True)
class Source:
    """The artifact that plans are judged for: its model.onnx as of now, and where it lies, for the commands."""

    name: str
    root: Path
    graph_sha256: str

    @classmethod
    def of(cls, root: Path, manifest: Manifest) -> "Source":
        """That of an artifact under `root`."""
        return cls(manifest.name, root, manifest.files.get(GRAPH, ""))

    def build(self, flavour: Flavour, precision: str = Precision.FP16) -> str:
        """The command that builds an engine for the card of the machine that it runs on."""
        photos = " --calibration PHOTOS" if precision == Precision.INT8 else ""
        return (
            f"topfive export {self.name} --engine {flavour} --precision {precision}{photos} --target this "
            f"--artifacts {self.root}"
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which a plan and the machine differ, and the command that mends it, empty where there is none."""

    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """A plan, the cards that it fits, and what differs; it fits where nothing does."""

    plan: EnginePlan
    cards: tuple[Card, ...]
    differences: tuple[Difference, ...]

    @property
    def fits(self) -> bool:
        """Whether it may be loaded here."""
        return not self.differences

    @property
    def reason(self) -> str:
        """What differs, in a line; empty where it fits."""
        return "; ".join(difference.what for difference in self.differences)

    @property
    def remedy(self) -> str:
        """What to run, each command once; empty where nothing is to be done."""
        return " and then ".join(dict.fromkeys(one.remedy for one in self.differences if one.remedy))


def misfits(fits: Iterable[Fit]) -> list[str]:
    """Those that do not fit by their names, what differs and what to run; plans with the same reason share a line."""
    names: dict[tuple[str, str], list[str]] = {}
    for fit in fits:
        if not fit.fits:
            names.setdefault((fit.reason, fit.remedy), []).append(fit.plan.record.stem)
    return [
        f"{' and '.join(stems)} {'does' if len(stems) == 1 else 'do'} not fit ({reason})"
        + (f"; run: {remedy}" if remedy else "")
        for (reason, remedy), stems in names.items()
    ]


def this_machine() -> Machine:
    """The machine as it is now; asks CUDA for its cards."""
    versions = {flavour: found for flavour in Flavour if (found := installed_version(flavour)) is not None}
    here, driver = cards(), driver_version()
    if not here.found and driver is None:
        here = Cards((), "there is no NVIDIA driver")  # CUDA itself speaks of a driver that is too old
    return Machine(here, driver, versions)


def survey(folder: Path, source: Source, machine: Machine, asked: Precision) -> tuple[tuple[Fit, ...], list[str]]:
    """Every plan in that artifact's folder, the best first, and what is wrong with records that cannot be read."""
    plans, damage = read_plans(folder)
    fits = [judge(plan, source, machine, asked, damage=_damage(plan)) for plan in plans]
    return tuple(sorted(fits, key=_place)), damage


def judge(plan: EnginePlan, source: Source, machine: Machine, asked: Precision, damage: str = "") -> Fit:
    """How `plan` fits, from its record alone; `damage` is what is known to be wrong with its file."""
    record = plan.record
    build = source.build(record.flavour, record.precision)
    on, differences = _cards(record, machine, build)
    differences += _versions(record, machine, build)
    if record.graph_sha256 != source.graph_sha256:
        differences.append(Difference("built from another model.onnx", build))
    if damage:
        differences.append(Difference(damage, build))
    if (wrong := _precision(record.precision, asked)) is not None:
        remedy = (
            source.build(record.flavour, asked) if asked is not Precision.AUTO else "topfive serve --precision int8"
        )
        differences.append(Difference(wrong, remedy))
    if not record.profile.smallest <= 1 <= record.profile.largest:
        what = f"it takes batches of {record.profile.smallest} to {record.profile.largest}, and one must be among them"
        differences.append(Difference(what, f"{build} --batch 1,8,32"))
    return Fit(plan, on, tuple(differences))


def _cards(record: PlanRecord, machine: Machine, build: str) -> tuple[tuple[Card, ...], list[Difference]]:
    """The cards that it fits, or else why it fits none."""
    found = machine.cards.found
    if not found:
        return (), [Difference(f"no NVIDIA card can be used here: {machine.cards.reason}")]
    capable = tuple(card for card in found if str(card.target) in record.targets)
    if not capable:
        return (), [Difference(f"built for {', '.join(record.targets)}; here is {_named(found)}", build)]
    # A plan of TensorRT proper is bound to the model of card; one for RTX is made for any card of its targets.
    if record.flavour is Flavour.TENSORRT and record.card is not None:
        capable, named = tuple(card for card in capable if card.name == record.card), capable
        if not capable:
            return (), [Difference(f"built on {record.card}; here is {_named(named)}", build)]
    return capable, []


def _versions(record: PlanRecord, machine: Machine, build: str) -> list[Difference]:
    """What is not installed or of another version; without a card nothing need be."""
    installed = machine.versions.get(record.flavour)
    if not machine.cards.found or installed == record.version:
        return []
    if installed is None:
        return [Difference(f"{record.flavour} is not installed", INSTALL[record.flavour])]
    return [Difference(f"built with {record.flavour} {record.version}; {installed} is installed", build)]


def _named(found: Sequence[Card]) -> str:
    return ", ".join(dict.fromkeys(f"{card.name} ({card.target})" for card in found))


def _precision(given: str, asked: Precision) -> str | None:
    """Why a plan in precision `given` is not for who asked; None where it is."""
    if asked is not Precision.AUTO:
        return None if given == asked else f"it computes in {given}, and {asked} is asked for"
    return None if given in PREFERRED else f"auto does not take {given}: it must be asked for"


def _damage(plan: EnginePlan) -> str:
    """What is wrong with the file at a glance. Its sha256 is compared when it is loaded."""
    try:
        size = plan.path.stat().st_size
    except OSError as error:
        return f"{plan.path.name} cannot be read ({error.strerror})"
    return "" if size == plan.record.size_bytes else f"{plan.path.name} is damaged: {size:,} bytes, not as recorded"


def _place(fit: Fit) -> tuple[int, int, str]:
    """Faster precisions first, then plans made for fewer cards."""
    precision = fit.plan.record.precision
    order = [str(one) for one in PREFERRED]
    return (
        order.index(precision) if precision in order else len(order),
        len(fit.plan.record.targets),
        str(fit.plan.path),
    )
