"""Generates the Python code of the contracts: `python -m proto.generate [FOLDER]`. Needs the `dev` extra.

The generator is pinned: what it writes runs with protobuf 6 and 7, and is the same on every machine.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONTRACTS = ("topfive/v1/classifier.proto", "inference/grpc_service.proto")
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")

# protoc imports by the path of the contract; the package that holds it is called proto. Clients of the Open Inference
# Protocol register its names in the default pool, in their versions.
_REPLACED = {
    "from topfive.v1 import": "from proto.topfive.v1 import",
    "from inference import": "from proto.inference import",
}
_OWN_POOL = {"_descriptor_pool.Default()": "_descriptor_pool.DescriptorPool()"}


def generate(folder: Path) -> list[Path]:
    """Write the generated files under `folder` as `topfive/v1/...`; returns their paths. Raises RuntimeError."""
    from grpc_tools import protoc

    folder.mkdir(parents=True, exist_ok=True)
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    if code := protoc.main(["protoc", f"-I{ROOT}", *outputs, *CONTRACTS]):
        raise RuntimeError(f"protoc ended with {code}")
    files = [folder / (contract.removesuffix(".proto") + end) for contract in CONTRACTS for end in GENERATED]
    for file in files:
        text = file.read_text()
        for old, new in {**_REPLACED, **(_OWN_POOL if file.parent.name == "inference" else {})}.items():
            text = text.replace(old, new)
        file.write_text(text)
    return files


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
