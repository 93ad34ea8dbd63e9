"""Reads a multipart form (RFC 7578) chunk by chunk, of which it keeps one field; it knows no HTTP beyond that.

Searching is left to `bytes.find`, and what a chunk holds of the field is not copied again where it is the whole chunk.
"""

import re
from dataclasses import dataclass, field
from enum import Enum, auto

MAX_FILES = 8
MAX_FIELDS = 16
_MAX_HEAD_BYTES = 16 << 10
_MAX_BLANKS = 64  # after a boundary on its line
# By RFC 2046 at most 70. Where a chunk ends in many CR, its end is compared once for each byte of a delimiter.
_MAX_BOUNDARY_BYTES = 256

_PARAMETER = re.compile(rb';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"]*)', re.DOTALL)
_ESCAPED = re.compile(rb'\\([\\"])')
_FOLD = re.compile(rb"\r\n[ \t]+")
_PLAIN_ENCODINGS = (b"", b"7bit", b"8bit", b"binary")


class FormError(Exception):
    """The bytes are not a form that can be read; the message says why."""


class _State(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()  # just after one
    HEAD = auto()
    CONTENT = auto()
    EPILOGUE = auto()


@dataclass(slots=True)
class Part:
    """One field. `pieces` make its content where it is the one to keep, else they are empty; `size` is in bytes."""

    name: str
    is_file: bool
    size: int = 0
    pieces: list[bytes] = field(default_factory=list)


class FormReader:
    """Takes the chunks of a form whose boundary that is, and keeps the content of the fields called `wanted`.

    Raises FormError where the boundary is too long to be one.
    """

    def __init__(self, boundary: bytes, wanted: str) -> None:
        if len(boundary) > _MAX_BOUNDARY_BYTES:
            raise FormError(f"its boundary has {len(boundary):,} bytes; at most {_MAX_BOUNDARY_BYTES} are read")
        self.parts: list[Part] = []
        self._wanted = wanted
        self._opening = b"--" + boundary
        self._delimiter = b"\r\n" + self._opening
        self._state = _State.PREAMBLE
        self._rest = b""  # the end of the last chunk, which may be the start of something
        self._at_start = True
        self._steps = {
            _State.PREAMBLE: self._preamble,
            _State.DELIMITER: self._after_delimiter,
            _State.HEAD: self._head,
            _State.CONTENT: self._content,
        }

    def feed(self, chunk: bytes) -> None:
        """The next bytes. Raises FormError."""
        data = self._rest + chunk if self._rest else chunk
        self._rest = b""
        position: int | None = 0
        while position is not None and self._state is not _State.EPILOGUE:
            position = self._steps[self._state](data, position)

    def close(self) -> None:
        """The form has ended. Raises FormError where it was not whole."""
        if self._state is _State.PREAMBLE:
            raise FormError("its boundary does not occur in it")
        if self._state is not _State.EPILOGUE:
            raise FormError("it ends before its closing boundary")

    # Each step takes what it understands from `position` on, and gives where the next one goes on, or None where it
    # needs more bytes.

    def _preamble(self, data: bytes, position: int) -> int | None:
        if self._at_start and len(data) < len(self._opening):
            self._rest = data
            return None
        first, self._at_start = self._at_start, False
        if first and data.startswith(self._opening):
            self._state = _State.DELIMITER
            return len(self._opening)
        found = data.find(self._delimiter, position)
        if found < 0:
            self._rest = data[self._possible_start(data, position) :]
            return None
        self._state = _State.DELIMITER
        return found + len(self._delimiter)

    def _after_delimiter(self, data: bytes, position: int) -> int | None:
        end = position
        while data[end : end + 1] in (b" ", b"\t"):
            end += 1
        if end - position > _MAX_BLANKS:
            raise FormError("a boundary is followed by too many blanks")
        mark = data[end : end + 2]
        if len(mark) < 2:
            self._rest = data[position:]
            return None
        if mark == b"--":
            self._state = _State.EPILOGUE
        elif mark == b"\r\n":
            self._state = _State.HEAD
        else:
            raise FormError("a boundary is followed by neither the end of its line nor --")
        return end + 2

    def _head(self, data: bytes, position: int) -> int | None:
        end = data.find(b"\r\n\r\n", position, position + _MAX_HEAD_BYTES)
        if end < 0:
            if len(data) - position >= _MAX_HEAD_BYTES:
                raise FormError(f"the head of a part has more than {_MAX_HEAD_BYTES:,} bytes")
            self._rest = data[position:]
            return None
        part = _part(data[position:end])
        self.parts.append(part)
        if sum(one.is_file for one in self.parts) > MAX_FILES:
            raise FormError(f"it has more than {MAX_FILES} files")
        if sum(not one.is_file for one in self.parts) > MAX_FIELDS:
            raise FormError(f"it has more than {MAX_FIELDS} fields")
        self._state = _State.CONTENT
        return end + 4

    def _content(self, data: bytes, position: int) -> int | None:
        found = data.find(self._delimiter, position)
        end = found if found >= 0 else self._possible_start(data, position)
        part = self.parts[-1]
        part.size += end - position
        if part.name == self._wanted and end > position:
            part.pieces.append(data[position:end])
        if found < 0:
            self._rest = data[end:]
            return None
        self._state = _State.DELIMITER
        return found + len(self._delimiter)

    def _possible_start(self, data: bytes, position: int) -> int:
        """Where a delimiter may begin that the next chunk completes, else the end."""
        start = max(position, len(data) - len(self._delimiter) + 1)
        while (start := data.find(b"\r", start)) >= 0:
            if self._delimiter.startswith(data[start:]):
                return start
            start += 1
        return len(data)


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary that a content type names, None where it names none."""
    return _parameters(content_type).get(b"boundary") or None


def _parameters(header: bytes) -> dict[bytes, bytes]:
    """Names in lower case and values of the parameters of a header, without quotes and escapes."""
    found = {}
    for name, value in _PARAMETER.findall(header):
        quoted = value.startswith(b'"')
        found[name.lower()] = _ESCAPED.sub(rb"\1", value[1:-1]) if quoted else value.strip()
    return found


def _part(head: bytes) -> Part:
    lines = _FOLD.sub(b" ", head).split(b"\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    options = _parameters(headers.get(b"content-disposition", b""))
    if b"name" not in options:
        raise FormError("a part does not say its name in a Content-Disposition")
    encoding = headers.get(b"content-transfer-encoding", b"").lower()
    if encoding not in _PLAIN_ENCODINGS:
        raise FormError(f"a part is encoded as {encoding[:30].decode(errors='replace')}; send its bytes as they are")
    return Part(_text(options[b"name"]), b"filename" in options)


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")
