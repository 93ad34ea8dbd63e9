"""Makes the artifact that comes with topfive: `make packaged` exports it anew, from the weights in this repository."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from export.common import Reporter
from export.pipeline import export
from export.terminal import ProgressBar
from export.weights_choice import WeightsChoice
from models.artifact.artifact import PACKAGED, WEIGHTS, load, write_manifest
from models.artifact.reference import REFERENCE
from models.catalog import CATALOG

NAME = "squeezenet1_1"


def export_packaged(root: Path, reporter: Reporter) -> None:
    """Export the model to the empty folder `root`, without what only the torch engine and checks on GPUs read."""
    export(CATALOG[NAME], WeightsChoice.parse("pretrained", None), root, reporter)
    artifact = load(root, NAME)
    for file in (WEIGHTS, REFERENCE):
        (artifact.folder / file).unlink()
    write_manifest(artifact.folder, artifact.manifest.model_copy(update={"packaged": True}))


if __name__ == "__main__":
    with TemporaryDirectory(dir=PACKAGED.parent) as made, ProgressBar(NAME) as bar:
        export_packaged(Path(made), bar)
        shutil.rmtree(PACKAGED, ignore_errors=True)
        shutil.copytree(made, PACKAGED)
