"""`make soak`: the soak test for as long as it is told, in seconds. Exits with 1 if anything is wrong or left."""

import asyncio
import sys
import tempfile
from pathlib import Path

import click

from export.pipeline import export
from export.weights_choice import WeightsChoice
from models.catalog import CATALOG
from tests.conftest import NullReporter
from tests.soak.soak import soak

with tempfile.TemporaryDirectory() as folder:
    export(CATALOG["tiny"], WeightsChoice.parse("untrained", None), Path(folder) / "artifacts", NullReporter())
    answers, wrong = asyncio.run(soak(Path(folder) / "artifacts", float(sys.argv[1])))
for who, count in sorted(answers.items()):
    click.echo(f"{count:9,} {who}")
click.echo("\n".join(wrong[:50]) or "every good answer right, nothing left")
sys.exit(1 if wrong else 0)
