"""Images of folders, patterns and lists, and labelled images of class folders and CSVs."""

import os
from pathlib import Path

import pytest

from models.labels import Label, imagenet_labels, named_labels
from service.offline.images import OfflineError, find_images, read_dataset, skipped_line
from tests.conftest import png

CRANES = (Label(0, "n02012849", "crane"), Label(1, "n03126707", "crane"), Label(2, "n03710637", "maillot"))


def make(folder: Path, *names: str) -> Path:
    """Images of these names below the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images at several depths, and files that are no images."""
    return make(
        tmp_path / "in", "b.png", "a.JPG", "sub/deep/c.webp", "sub/d.jpeg", "notes.md", "labels.csv", "x[1].png"
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([""], ["a.JPG", "b.png", "x[1].png", "sub/d.jpeg", "sub/deep/c.webp"]),
        (["b.png", "sub/../notes.md", "./b.png"], ["b.png", "sub/../notes.md"]),
        (["x[1].png"], ["x[1].png"]),
        (["sub", "sub/deep/../d.jpeg"], ["sub/d.jpeg", "sub/deep/c.webp"]),
    ],
)
def test_find(arguments: list[str], names: list[str], folder: Path) -> None:
    """A folder gives the images by suffix in any case, a file is taken as it is; each counts once."""
    found = find_images([f"{folder}/{argument}" for argument in arguments])

    assert [str(image.path.relative_to(folder)) for image in found.images] == names


def test_lists(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of a list are relative to its folder, else to the working directory; a missing file is kept."""
    monkeypatch.chdir(tmp_path)
    (folder / "list.txt").write_text(f"\ufeffb.png\n\n  sub/d.jpeg \nin/a.JPG\n{folder}/b.png\nnone.png\n", "utf-8")

    paths = [str(image.path) for image in find_images([str(folder / "list.txt")]).images]
    assert paths == [f"{folder}/b.png", f"{folder}/sub/d.jpeg", "in/a.JPG", f"{folder}/none.png"]


CLUTTER = (
    ".ipynb_checkpoints/a-checkpoint.png",
    "0/.ipynb_checkpoints/a-checkpoint.png",
    "0/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
    "0/._a.png",
    ".Trash-1000/files/b.png",
    "$RECYCLE.BIN/c.png",
    "__MACOSX/0/._a.png",
    ".thumbnails/large/d.png",
    "._e.png",
)


def test_no_photos(tmp_path: Path) -> None:
    """Hidden files and folders, and those that tools make, are skipped and counted: in datasets and folders.

    A folder that is named by the argument itself is not skipped.
    """
    make(tmp_path, "0/a.png", "1/b.png", *CLUTTER)
    photos = [tmp_path / "0" / "a.png", tmp_path / "1" / "b.png"]

    dataset, found = read_dataset(tmp_path), find_images([str(tmp_path)])
    assert [image.path for image in dataset.images] == [image.path for image in found.images] == photos
    assert dataset.skipped == found.skipped == len(CLUTTER)
    assert str(len(CLUTTER)) in str(skipped_line(found.skipped))
    assert skipped_line(0) is None

    assert len(find_images([f"{tmp_path}/0/@eaDir"]).images) == 1


def test_linked_folders(tmp_path: Path) -> None:
    """Datasets and folders are read through links to folders; a link that leads back up is read once."""
    make(tmp_path / "elsewhere", "a.png", "deep/b.png")
    make(tmp_path / "in", "1/c.png")
    (tmp_path / "in" / "0").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    names = ["0/a.png", "0/deep/b.png", "1/c.png"]

    assert [image.name for image in read_dataset(tmp_path / "in").images] == names
    found = find_images([str(tmp_path / "in")]).images
    assert [str(image.path.relative_to(tmp_path / "in")) for image in found] == names


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("empty", r"no image in empty; looked for .*\.jpeg"),
        ("none", "none does not exist"),
        ("empty.txt", "no image in empty.txt"),
    ],
)
def test_nothing_found(
    argument: str, reason: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument without images is an error that says what was looked for, even beside others that have some."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")

    with pytest.raises(OfflineError, match=reason):
        find_images([str(folder), argument])


def classes(source: Path, labels: tuple[Label, ...] = imagenet_labels()) -> dict[str, int | None]:
    """The class id of each image, by its name."""
    return {image.name: image.truth for image in read_dataset(source).files(labels, "net")}


def test_class_folders(tmp_path: Path) -> None:
    """A class folder has as its name a wnid, a class id, or a label in any case with spaces or underscores.

    Several folders may mean one class; files that are no images do not count.
    """
    names = ["n02123159", "tiger cat", "tiger_cat", "Tiger_Cat", "282", "TIGER  cat"]
    images = {**{f"{name}/deep/a.png": 282 for name in names}, "0/c.JPG": 0}
    make(tmp_path, *images, "0/notes.md", "README.md", "empty/notes.txt")

    assert classes(tmp_path) == images


def test_digits(tmp_path: Path) -> None:
    """A folder with a number as its name means the label of that number first, and the class id second."""
    make(tmp_path, *(f"{digit}/a.png" for digit in range(10)))

    assert list(classes(tmp_path, named_labels("digits")).values()) == list(range(10))
    upside_down = tuple(Label(class_id, "", str(9 - class_id)) for class_id in range(10))
    assert list(classes(tmp_path, upside_down).values()) == list(range(9, -1, -1))


@pytest.mark.parametrize(
    ("head", "cells"),
    [
        ("path,label", "a.png,tiger_cat"),
        ("file,wnid", "a.png,n02123159"),
        ("file,class_id", "a.png,282"),
        ("file,class_id,wnid,label", "a.png,281,n02123159,tabby"),
        ("file,class_id,wnid,label", "a.png,282,,tabby"),
        ("label,path", '"tiger cat",a.png'),
    ],
)
def test_tables(head: str, cells: str, tmp_path: Path) -> None:
    """A CSV has path or file, and wnid, class_id or label: the first of those that is filled in counts.

    A file that does not exist is listed all the same; the run reports it as unreadable.
    """
    (tmp_path / "list.csv").write_text(f"{head}\n{cells}\n{cells}\n")

    assert classes(tmp_path / "list.csv") == {"a.png": 282}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("image,label\na.png,1\n", "columns 'image', 'label'; needed are path or file, and wnid or class_id or label"),
        ("path;label\na.png;1\n", "columns 'path;label'; .* with commas between them"),
        ("path,label\na.png,\n", "row 2 has no label"),
        ("path,label\n,1\n", "row 2 has no path"),
        ("path,label\na.png,1\na.png,2\n", "a.png has two labels, '1' and '2'"),
        ("path,label\n", "has no images; expected"),
    ],
)
def test_refused_tables(table: str, reason: str, tmp_path: Path) -> None:
    """A CSV without a path and one label for each image raises an error with the reason."""
    (tmp_path / "list.csv").write_text(table)

    with pytest.raises(OfflineError, match=reason):
        read_dataset(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("names", "source", "reason"),
    [
        ((), "", r"DIR/n02123045/a\.jpg"),
        (("n02123159/a.png", "b.png"), "", r"b\.png is in no class folder; .*DIR/n02123045/a\.jpg"),
        (("b.png",), "b.png", r"neither a folder nor a \.csv file"),
    ],
)
def test_refused_folders(names: tuple[str, ...], source: str, reason: str, tmp_path: Path) -> None:
    """A folder without class folders, or with an image outside them, raises an error with the expected layout."""
    make(tmp_path, *names)

    with pytest.raises(OfflineError, match=reason):
        read_dataset(tmp_path / source)


@pytest.mark.parametrize(
    ("folders", "labels", "reason"),
    [
        (["0", "tiger catt"], imagenet_labels(), r"'tiger catt' \(did you mean 'tiger cat'\?\)"),
        (
            ["n00000000"],
            imagenet_labels(),
            "net does not know 'n00000000'; it has the class ids 0 to 999; nothing was run",
        ),
        (["1001"], imagenet_labels(), "'1001'; it has the class ids 0 to 999; nothing was run$"),
        (["1", "1000"], imagenet_labels(), "'1000'; it has .*probably count from 1, .*: subtract 1; nothing was run"),
        (["0", "1000"], imagenet_labels(), "or have a background class 0: subtract 1"),
        ([f"zzzz{number}" for number in range(9)], imagenet_labels(), "and 4 more; "),
        (["Crane"], CRANES, "'Crane' means several classes; write n02012849 or n03126707"),
    ],
)
def test_unknown_labels(folders: list[str], labels: tuple[Label, ...], reason: str, tmp_path: Path) -> None:
    """A label that means no class of the model, or several, raises an error with suggestions."""
    make(tmp_path, *(f"{folder}/a.png" for folder in folders))

    with pytest.raises(OfflineError, match=reason):
        classes(tmp_path, labels)


def test_fingerprint(tmp_path: Path) -> None:
    """The fingerprint depends on names, labels and sizes of the images, and not on where the folder lies."""
    first = make(tmp_path / "a", "0/a.png", os.fsdecode(b"1/caf\xe9.png"))
    second = make(tmp_path / "b", "0/a.png", os.fsdecode(b"1/caf\xe9.png"))
    same = read_dataset(first).sha256
    assert read_dataset(second).sha256 == same

    (second / "0" / "a.png").write_bytes(png() + b" ")
    assert read_dataset(second).sha256 != same
    (second / "0" / "a.png").write_bytes(png())
    assert read_dataset(second).sha256 == same
    (second / "0").rename(second / "2")
    assert read_dataset(second).sha256 != same
