"""Generates the Python code of the contract: `python -m proto.generate [FOLDER]`. Needs the `dev` extra.

The generator is pinned: what it writes runs with protobuf 6 and 7, and is the same on every machine.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONTRACT = "topfive/v1/classifier.proto"
GENERATED = ("classifier_pb2.py", "classifier_pb2.pyi", "classifier_pb2_grpc.py")


def generate(folder: Path) -> list[Path]:
    """Write the generated files under `folder` as `topfive/v1/...`; returns their paths. Raises RuntimeError."""
    from grpc_tools import protoc

    folder.mkdir(parents=True, exist_ok=True)
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    if code := protoc.main(["protoc", f"-I{ROOT}", *outputs, CONTRACT]):
        raise RuntimeError(f"protoc ended with {code}")
    files = [folder / "topfive" / "v1" / name for name in GENERATED]
    for file in files:
        # protoc imports by the path of the contract; the package that holds it is called proto
        text = file.read_text().replace("from topfive.v1 import", "from proto.topfive.v1 import")
        file.write_text(text)
    return files


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
