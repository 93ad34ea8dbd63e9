"""The reader of multipart forms: what is a form, in whatever chunks it comes, and what is not."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rest.form import MAX_FIELDS, MAX_FILES, FormError, FormReader, Part, boundary_of

BOUNDARY = b"----x7"


def part(
    content: bytes, disposition: bytes = b'form-data; name="image"; filename="cat.jpg"', extra: bytes = b""
) -> bytes:
    """One part with the boundary before it, as it stands in a form."""
    return b"--%s\r\nContent-Disposition: %s\r\n%s\r\n%s\r\n" % (BOUNDARY, disposition, extra, content)


END = b"--%s--\r\n" % BOUNDARY


def read(form: bytes, *cuts: int, boundary: bytes = BOUNDARY) -> list[Part]:
    """The parts of a form that comes in chunks which end at `cuts`."""
    reader = FormReader(boundary, "image")
    edges = [0, *sorted(cuts), len(form)]
    for begin, end in pairwise(edges):
        reader.feed(form[begin:end])
    reader.close()
    return reader.parts


def content(part: Part) -> bytes:
    """All of it."""
    return b"".join(part.pieces)


def test_one_image() -> None:
    """A form as curl writes it gives the bytes of its file, and says that it is one."""
    [image] = read(part(b"\xff\xd8jpeg", extra=b"Content-Type: image/jpeg\r\n") + END)

    assert (image.name, image.is_file, image.size, content(image)) == ("image", True, 6, b"\xff\xd8jpeg")


def test_at_every_cut() -> None:
    """Wherever a chunk ends, in a boundary or in a head, the parts are the same."""
    form = part(b"text", b'form-data; name="note"') + part(b"\r\n--\r\r\n----x\r\n" * 3) + END
    for cut in range(len(form) + 1):
        note, image = read(form, cut)
        assert (note.name, note.is_file, note.size, note.pieces) == ("note", False, 4, [])
        assert content(image) == b"\r\n--\r\r\n----x\r\n" * 3


def test_byte_by_byte() -> None:
    """A form that comes one byte at a time is read as well."""
    form = b"\r\n" + part(b"a\r\n--b") + END
    [image] = read(form, *range(len(form)))

    assert content(image) == b"a\r\n--b"


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"----x", b"x7", b"a", b"\r\n--", b"\x00"]), max_size=30),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_any_content(pieces: list[bytes], cuts: list[int]) -> None:
    """Any content that does not hold the boundary comes out as it went in, whatever the chunks."""
    wanted = b"".join(pieces)
    if b"\r\n--" + BOUNDARY in b"\r\n" + wanted + b"\r\n":
        return
    form = part(wanted) + END
    [image] = read(form, *(min(cut, len(form)) for cut in cuts))

    assert content(image) == wanted
    assert image.size == len(wanted)


def test_a_chunk_is_not_copied() -> None:
    """A chunk in the middle of the image is kept as it is: the same object."""
    reader = FormReader(BOUNDARY, "image")
    middle = bytes(100_000)
    for chunk in (part(b"")[:-2], middle, b"\r\n" + END):
        reader.feed(chunk)
    reader.close()

    assert any(piece is middle for piece in reader.parts[0].pieces)


@pytest.mark.parametrize(
    "form",
    [
        b"a preamble\r\nof two lines\r\n" + part(b"abc") + END,
        part(b"abc") + END + b"an epilogue\r\n--" + BOUNDARY + b"\r\n",
        part(b"abc") + END.rstrip(),
        b"--%s  \t\r\n" % BOUNDARY + part(b"abc").partition(b"\r\n")[2] + END,
        part(b"abc", b'form-data;\r\n name="image";\r\n\tfilename="a;b.jpg"') + END,
        part(b"abc", b'FORM-DATA; NAME=image; FILENAME=""') + END,
        part(b"abc", extra=b"content-transfer-encoding: BINARY\r\n") + END,
    ],
)
def test_forms(form: bytes) -> None:
    """What may stand around parts and in their heads does not hide the image."""
    [image] = read(form)

    assert (image.name, image.is_file, content(image)) == ("image", True, b"abc")


def test_empty() -> None:
    """A file of no bytes is a file; a form without parts has none."""
    [image] = read(part(b"") + END)

    assert (image.is_file, image.size) == (True, 0)
    assert read(END) == []


@pytest.mark.parametrize(
    ("disposition", "name", "is_file"),
    [
        (b'form-data; name="image"', "image", False),
        (b"form-data; name=\"image\"; filename*=utf-8''cat.jpg", "image", False),
        (b'form-data; filename="name=x"; name="a\\"b\\\\c"', 'a"b\\c', True),
        ("form-data; name=größe".encode(), "größe", False),
        (b"form-data; name=gr\xf6\xdfe", "größe", False),
    ],
)
def test_names(disposition: bytes, name: str, is_file: bool) -> None:
    """A name may be quoted, escaped and not ASCII; only a plain file name makes a file (RFC 7578, section 4.2)."""
    [one] = read(part(b"abc", disposition) + END)

    assert (one.name, one.is_file) == (name, is_file)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (b"", "does not occur"),
        (b"abc", "does not occur"),
        (part(b"abc"), "before its closing boundary"),
        (part(b"abc") + b"--" + BOUNDARY, "before its closing boundary"),
        (part(b"abc")[:20], "before its closing boundary"),
        (part(b"abc") + b"--%sy\r\n" % BOUNDARY, "neither the end of its line nor --"),
        (part(b"abc") + b"--%s\n" % BOUNDARY + part(b"abc"), "neither the end of its line nor --"),
        (b"--%s%s" % (BOUNDARY, b" " * 200), "too many blanks"),
        (part(b"abc", b"form-data") + END, "does not say its name"),
        (b"--%s\r\nContent-Type: image/png\r\n\r\nabc\r\n" % BOUNDARY + END, "does not say its name"),
        (part(b"abc", extra=b"Content-Transfer-Encoding: base64\r\n") + END, "encoded as base64"),
        (part(b"abc", extra=b"X: %s\r\n" % bytes(20_000)) + END, "the head of a part"),
        (part(b"") * (MAX_FILES + 1) + END, f"more than {MAX_FILES} files"),
        (part(b"", b"form-data; name=a") * (MAX_FIELDS + 1) + END, f"more than {MAX_FIELDS} fields"),
    ],
)
def test_not_a_form(form: bytes, words: str) -> None:
    """What is not a whole form says why, in one chunk and byte by byte."""
    with pytest.raises(FormError, match=words):
        read(form)
    with pytest.raises(FormError, match=words):
        read(form, *range(len(form)))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'multipart/form-data; charset=utf-8; Boundary="a b;c"', b"a b;c"),
        (b"multipart/form-data;boundary=abc ; x=y", b"abc"),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b'multipart/form-data; boundary=""', None),
    ],
)
def test_boundary(content_type: bytes, boundary: bytes | None) -> None:
    """The boundary may be quoted and stand anywhere among the parameters; an empty one is none."""
    assert boundary_of(content_type) == boundary


def test_a_long_boundary() -> None:
    """A boundary far longer than any is refused before anything is searched, which could cost its square."""
    longest = b"b" * 256
    assert read(b"--%s--" % longest, boundary=longest) == []
    with pytest.raises(FormError, match="has 257 bytes; at most 256"):
        FormReader(longest + b"b", "image")
