"""`make fuzz`: mutates inputs for as many seconds as it is told. What fails stays in build/fuzz."""

import hashlib
import random
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.fuzz.fuzz import faults
from tests.fuzz.targets import targets

out = Path("build/fuzz")
out.mkdir(parents=True, exist_ok=True)
seed = random.SystemRandom().randrange(1 << 32)
click.echo(f"seed {seed}")
with tempfile.TemporaryDirectory() as folder:
    runs = [
        (name, faults(read, seeds, random.Random(f"{seed} {name}"), out / f"current-{name}"))
        for name, (read, seeds) in targets(Path(folder)).items()
    ]
    end, read_inputs, found = time.monotonic() + float(sys.argv[1]), 0, 0
    while time.monotonic() < end:
        for name, run in runs:
            turn = time.monotonic() + 1
            while time.monotonic() < turn:
                read_inputs += 1
                if fault := next(run):
                    found += 1
                    file = out / f"{name}-{hashlib.sha256(fault[0]).hexdigest()[:12]}"
                    file.write_bytes(fault[0])
                    click.echo(f"{file}: {fault[1]}")
click.echo(f"{read_inputs:,} inputs, {found} faults")
sys.exit(1 if found else 0)
