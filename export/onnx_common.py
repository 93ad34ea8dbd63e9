"""What every ONNX file of topfive has in common, exported or imported: its opset, and no notes of the exporter."""

from google.protobuf.message import Message

OPSET = 20  # torch's default; TensorRT reads 9 to 24


class ExportError(Exception):
    """The network could not be turned into the graph contract; the message says what is wrong with the file."""


def strip_metadata(message: Message) -> None:
    """Remove the exporter's notes everywhere: they hold stack traces and paths of the machine that exported."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                strip_metadata(child)
