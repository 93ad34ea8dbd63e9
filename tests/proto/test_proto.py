"""The committed gRPC code is what `make proto` writes."""

from pathlib import Path

from proto import generate


def test_no_drift(tmp_path: Path) -> None:
    """Generating again gives the committed files, byte for byte."""
    for file in generate.generate(tmp_path):
        committed = generate.ROOT / file.relative_to(tmp_path)
        assert file.read_bytes() == committed.read_bytes(), f"{committed} is out of date; run: make proto"


def test_generated_for_both_runtimes() -> None:
    """The code was generated for protobuf 6, which the runtimes of 6 and 7 both accept."""
    text = (generate.ROOT / "topfive" / "v1" / "classifier_pb2.py").read_text()
    assert "# Protobuf Python Version: 6." in text
