"""The committed gRPC code is what `make proto` writes."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from proto import generate
from proto.inference import grpc_service_pb2 as v2


def test_no_drift(tmp_path: Path) -> None:
    """Generating again gives the committed files, byte for byte."""
    for file in generate.generate(tmp_path):
        committed = generate.ROOT / file.relative_to(tmp_path)
        assert file.read_bytes() == committed.read_bytes(), f"{committed} is out of date; run: make proto"


def test_generated_for_both_runtimes() -> None:
    """The code was generated for protobuf 6, which the runtimes of 6 and 7 both accept."""
    for contract in generate.CONTRACTS:
        text = (generate.ROOT / contract.replace(".proto", "_pb2.py")).read_text()
        assert "# Protobuf Python Version: 6." in text


def test_names_of_the_protocol_are_free() -> None:
    """The default pool has none of its messages, so that the clients' own modules find their names free."""
    assert v2.ModelInferRequest.FromString(v2.ModelInferRequest(id="7").SerializeToString()).id == "7"
    for message in v2.DESCRIPTOR.message_types_by_name.values():
        with pytest.raises(KeyError):
            descriptor_pool.Default().FindMessageTypeByName(message.full_name)
