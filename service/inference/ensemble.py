"""The models that answer a request together: a single one, or the members of `ensemble:a+b+c`."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from models.labels import Label
from service.batching.slo import Place
from service.common.errors import BadRequest
from service.common.metrics import LatencyRecord
from service.common.tasks import together
from service.common.types import ENSEMBLE, ENSEMBLE_PREFIX, MAX_MEMBERS, EngineInfo, ModelCard, Probabilities
from service.inference.topk import DEFAULT_TOP_K
from service.repository.loaded_model import LoadedModel
from service.repository.repository import Repository

_MOST_KEPT = 64  # ensembles whose latency is remembered: clients choose the names, so there could be any number

_MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Panel:
    """One model or several with the same classes, and the latency measured for it as a whole."""

    members: tuple[LoadedModel, ...]
    latency: LatencyRecord

    @property
    def name(self) -> str:
        """The model's name, or `ensemble:` and those of the members."""
        names = [member.name for member in self.members]
        return names[0] if len(names) == 1 else ENSEMBLE_PREFIX + "+".join(names)

    @property
    def metrics_label(self) -> str:
        """The model's name, or the same word for all ensembles: their names are made by clients."""
        return self.name if len(self.members) == 1 else ENSEMBLE

    @property
    def labels(self) -> Sequence[Label]:
        """A label per class."""
        return self.members[0].artifact.labels

    def top_k(self, asked: int | None) -> int:
        """How many classes to give: as asked, else five or all if there are fewer. Raises BadRequest."""
        classes = len(self.labels)
        if asked is None:
            return min(DEFAULT_TOP_K, classes)
        if not 1 <= asked <= classes:
            raise BadRequest(f"top_k is {asked}; {self.name} has classes for 1 to {classes}")
        return asked

    @property
    def card(self) -> ModelCard:
        """The model's card, or one that sums up those of the members; version and accuracy are theirs alone."""
        if len(self.members) == 1:
            return self.members[0].card
        cards = [member.card for member in self.members]
        weights = {card.weights for card in cards}
        return ModelCard(
            name=self.name,
            version=0,
            family=ENSEMBLE,
            parameters=sum(card.parameters for card in cards),
            macs=sum(card.macs for card in cards),
            input_size=max(card.input_size for card in cards),
            weights=cards[0].weights if len(weights) == 1 else _MIXED,
            acc1=None,
            acc5=None,
            acc_dataset=None,
            latency_ms=self.latency.snapshot(),
        )

    @property
    def member_cards(self) -> tuple[ModelCard, ...]:
        """The cards of an ensemble's members; none of a single model, whose card says it all."""
        return tuple(member.card for member in self.members) if len(self.members) > 1 else ()

    @property
    def engine(self) -> EngineInfo:
        """What the members run on; where they differ, each part joined by `+`."""
        infos = [member.engine_info for member in self.members]
        if len(set(infos)) == 1:
            return infos[0]
        return EngineInfo(
            runtime=_joined(info.runtime for info in infos),
            version=_joined(info.version for info in infos),
            device=_joined(info.device for info in infos),
            precision=_joined(info.precision for info in infos),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of all members, each once."""
        return tuple(dict.fromkeys(warning for member in self.members for warning in member.warnings))

    @contextmanager
    def admitted(self, crops: int) -> Iterator[list[Place]]:
        """A place for each crop at every member, all or none, until its end; raises what `Batcher.admit` raises."""
        with ExitStack() as admissions:
            yield [admissions.enter_context(member.batcher.admit(crops)) for member in self.members]


class Panels:
    """Finds the models that a name means, loading them where they are not."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._ensembles: OrderedDict[tuple[str, ...], Panel] = OrderedDict()

    def canonical(self, name: str) -> str:
        """The same name for every spelling of one model or ensemble, whether there is such a one or not."""
        if not is_ensemble(name):
            return self._repository.canonical(name)
        return ENSEMBLE_PREFIX + "+".join(self._repository.canonical(one) for one in _split(name))

    async def get(self, name: str, holds: ExitStack | None = None) -> Panel:
        """The panel of that name, whose members stay loaded until `holds` is closed, as `Repository.get` says.

        Raises BadRequest where it is no ensemble that can be, and for each member what `Repository.get` raises.
        """
        names = tuple(self._repository.canonical(member) for member in member_names(name))
        if len(set(names)) < len(names):
            twice = next(one for one in names if names.count(one) > 1)
            raise BadRequest(f"{twice} is in the ensemble twice; name each member once")
        members = tuple(await together([self._repository.get(member, holds) for member in names]))
        if len(members) == 1:
            return Panel(members, members[0].latency)
        return self._kept(names, members)

    def _kept(self, names: tuple[str, ...], members: tuple[LoadedModel, ...]) -> Panel:
        """The same panel as the last time, so that its latency goes on; the one unused for longest is forgotten."""
        panel = self._ensembles.pop(names, None)
        if panel is None or panel.members != members:
            _check_labels(members)
            panel = Panel(members, LatencyRecord())
        self._ensembles[names] = panel
        if len(self._ensembles) > _MOST_KEPT:
            self._ensembles.popitem(last=False)
        return panel


def is_ensemble(name: str) -> bool:
    """Whether it names an ensemble."""
    return name.startswith(ENSEMBLE_PREFIX)


def spelt(name: str) -> str:
    """The name of a model or an ensemble as it stands in answers: its members joined by `+`, no blanks around them."""
    return ENSEMBLE_PREFIX + "+".join(_split(name)) if is_ensemble(name) else name.strip()


def member_names(name: str) -> tuple[str, ...]:
    """The models in a name, as it gives them: itself, or the members of an ensemble. Raises BadRequest."""
    if not is_ensemble(name):
        return (name,)
    names = _split(name)
    if not 2 <= len(names) <= MAX_MEMBERS:
        raise BadRequest(f"an ensemble has 2 to {MAX_MEMBERS} members, such as {ENSEMBLE_PREFIX}googlenet+resnet50")
    return names


def mean(rows: Sequence[Probabilities]) -> Probabilities:
    """The plain average of rows [C], computed in float64."""
    if len(rows) == 1:
        return rows[0]
    total = np.zeros(rows[0].shape, dtype=np.float64)
    for row in rows:
        total += row
    return (total / len(rows)).astype(np.float32)


def _split(name: str) -> tuple[str, ...]:
    """The members of an ensemble; a `+` that stands as it is in an address arrives as a blank."""
    return tuple(name.removeprefix(ENSEMBLE_PREFIX).replace("+", " ").split())


def _check_labels(members: Sequence[LoadedModel]) -> None:
    first = members[0]
    for other in members[1:]:
        if other.artifact.labels != first.artifact.labels:
            raise BadRequest(f"{first.name} and {other.name} have different classes, so they make no ensemble")


def _joined(values: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(values))
