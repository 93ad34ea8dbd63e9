"""`recipe.toml`: defaults, the conversion to units of 255, and that each mistake names its key and what to write."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.importing.recipe import Output, Recipe, RecipeError, read_recipe
from models.catalog import Channels, InputSpec, Interpolation


def written(folder: Path, text: str) -> Path:
    """A recipe file with that text."""
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    """With nothing said: RGB, bilinear, logits, no mean, no deviation; size and scale are the network's to say."""
    assert read_recipe(written(tmp_path, "")) == Recipe()


def test_every_key_is_read(tmp_path: Path) -> None:
    """Each key arrives where it belongs."""
    text = """
        size = 299
        resize = 342
        interpolation = "bicubic"
        channels = "bgr"
        scale = 1
        mean = [103.5, 116, 123]
        std = 57.5
        output = "probabilities"
        output_name = "prob"
    """
    expected = Recipe(
        size=299,
        resize=342,
        interpolation=Interpolation.BICUBIC,
        channels=Channels.BGR,
        scale=1,
        mean=(103.5, 116.0, 123.0),
        std=(57.5, 57.5, 57.5),
        output=Output.PROBABILITIES,
        output_name="prob",
    )
    assert read_recipe(written(tmp_path, text)) == expected


def test_input_of_the_usual_recipe() -> None:
    """With scale 255 the numbers are those of the file, and the crop is the photo's whole shorter side."""
    spec = Recipe(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).input_spec(224, 255)

    assert spec == InputSpec(resize=224, crop=224)


@given(pixel=st.integers(0, 255), mean=st.floats(-300, 300), std=st.floats(0.01, 300), scale=st.sampled_from([1, 255]))
def test_units_of_255_mean_the_same(pixel: int, mean: float, std: float, scale: int) -> None:
    """`(pixel / 255 - mean') / std'` of the artifact is `(pixel / scale - mean) / std` of the recipe."""
    spec = Recipe(mean=(mean,) * 3, std=(std,) * 3).input_spec(32, scale)

    assert (pixel / 255 - spec.mean[1]) / spec.std[1] == pytest.approx((pixel / scale - mean) / std, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise = 224", r"sise: .*not permitted; the keys are size, resize"),
        ("size = [224, 200]", r"size: .* integer"),
        ("size = 0", r"size: .* greater than or equal to 1"),
        ("size = true", r"size: .* integer"),
        ("size = 224.5", r"size: .* integer"),
        ("resize = 5000", r"resize: .* less than or equal to 4096"),
        ('interpolation = "nearest"', r"interpolation: .* 'bilinear' or 'bicubic'"),
        ("channels = 3", r"channels: .* 'rgb', 'bgr' or 'grey'"),
        ("scale = 127.5", r"scale: .* 1 or 255"),
        ("mean = [0.5, 0.5]", r"mean\.2: Field required"),
        ('std = "1"', r"std\.0: .* number"),
        ("std = [1, true, 1]", r"std\.1: .* number"),
        ("mean = 1e300", r"mean\.0: .* less than or equal to 1000000"),
        (f"mean = 1{'0' * 400}", r"mean\.0: "),
        ("std = 1e-300", r"std\.0: .* greater than or equal to 0.0+1"),
        ("std = 0", r"std\.0: "),
        ("mean = nan", r"mean\.0: "),
        ("std = [1, 0, 1]", r"std\.1: .* greater than"),
        ("std = -1", r"std\.0: .* greater than"),
        ('channels = "grey"\nmean = [1, 2, 3]', r"a grey network has one channel; write one number"),
        ('output = "softmax"', r"output: .* 'logits' or 'probabilities'"),
        ('output_name = ""', r"output_name: .* at least 1 character"),
        ("std = []", r"std\.0: Field required"),
        ("size: 224", r"is not TOML"),
        ("channels = bgr", r'is not TOML.*with words in quotes: channels = "bgr"'),
        ("size = 224\nsize = 224", r"is not TOML.*each key is there once"),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    """The error begins with the file and says which key does not fit, and what to write."""
    path = written(tmp_path, text)

    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)

    assert str(path) in str(caught.value)


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    """A file that is not there is an error with its path."""
    with pytest.raises(RecipeError, match=r"none\.toml cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")


def test_default_size_counts_for_resize() -> None:
    """A resize below the size that the network itself fixes is refused as well."""
    with pytest.raises(RecipeError, match=r"resize = 200 is smaller than size = 224"):
        Recipe(resize=200).input_spec(224, 255)


def test_grey_may_be_a_list_of_one(tmp_path: Path) -> None:
    """The one channel of a grey network may have its number in a list, as for three channels."""
    found = read_recipe(written(tmp_path, 'channels = "grey"\nmean = [0.13]\nstd = [0.31]'))

    assert (found.mean, found.std) == ((0.13,) * 3, (0.31,) * 3)


def test_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    """What Windows editors write, a byte order mark and CRLF, is read; UTF-16 is named as what it is not."""
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbfsize = 16\r\nresize = 20\r\n")
    assert read_recipe(path) == Recipe(size=16, resize=20)

    path.write_text("size = 16", encoding="utf-16")
    with pytest.raises(RecipeError, match=r"is not text in UTF-8 .*; save it as UTF-8"):
        read_recipe(path)
