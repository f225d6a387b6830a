"""What the image model takes and gives, and what it refuses; that it serves, test_registry and test_serving show."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from components.inference.contract import Contract
from components.inference.image_model import MOST_BYTES, ImageModel, is_missing
from components.inference.restorer import ImageRestorer

pytestmark = pytest.mark.unit

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (20, 30, 3), dtype=np.uint8)
SQUARED = np.rint((PIXELS / 255.0) ** 2 * 255).astype(np.uint8)


def _file(pixels: np.ndarray = PIXELS, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def _model(inputs: int = 3, outputs: int | None = 3) -> ImageModel:
    """Squares images."""
    contract = Contract.of_channels("denoise", inputs, outputs, classes=0 if outputs else 2)
    network = (lambda x: x[:, :outputs].square()) if outputs else (lambda x: x.mean((2, 3))[:, :2])
    return ImageModel(ImageRestorer(network, contract, "cpu"))


def test_files_come_back_as_files_of_the_same_format() -> None:
    for form in ("PNG", "BMP", "TIFF"):
        result = _model().predict(_file(form=form))
        assert isinstance(result, bytes)
        with Image.open(io.BytesIO(result)) as image:
            assert image.format == form
        assert np.array_equal(_pixels(result), SQUARED)


def test_text_in_base64_comes_back_as_text() -> None:
    text = base64.b64encode(_file()).decode()
    for given in (text, f"data:image/png;base64,{text}"):
        (result,) = _model().predict([given])
        assert np.array_equal(_pixels(base64.b64decode(result)), SQUARED)


@pytest.mark.parametrize("given", [_file(), base64.b64encode(_file()).decode()], ids=["bytes", "base64"])
def test_a_table_comes_back_as_a_table_with_its_index(given: Any) -> None:
    result = _model().predict(pd.DataFrame({"image": [given, given]}, index=["a", "b"]))
    assert list(result.index) == ["a", "b"]
    assert list(result.columns) == ["image"]
    for each in result["image"]:
        assert type(each) is type(given)
        assert np.array_equal(_pixels(each if isinstance(each, bytes) else base64.b64decode(each)), SQUARED)


def test_arrays_come_back_with_their_shape_and_dtype() -> None:
    model = _model()
    assert np.array_equal(model.predict(PIXELS), SQUARED)
    for layout in ((0, 1, 2, 3), (0, 3, 1, 2)):
        batch = np.stack([PIXELS, PIXELS]).transpose(layout)
        assert np.array_equal(model.predict(batch), np.stack([SQUARED, SQUARED]).transpose(layout))
    grey = model.predict(PIXELS[..., 0])
    assert (grey.shape, grey.dtype) == ((20, 30), np.uint8)
    with_alpha = model.predict(np.concatenate([PIXELS, PIXELS[..., :1]], axis=2))
    assert np.array_equal(with_alpha[..., 3], PIXELS[..., 0])
    first, second = model.predict([PIXELS, PIXELS[:7]])
    assert np.array_equal(first, SQUARED)
    assert np.array_equal(second, SQUARED[:7])
    sixteen = model.predict(PIXELS.astype(np.uint16) * 257)
    assert sixteen.dtype == np.uint16


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_the_networks_own_input_and_are_not_clipped(dtype: type) -> None:
    batch = GENERATOR.random((2, 3, 20, 30)).astype(dtype)
    model = ImageModel(ImageRestorer(lambda x: x * 2, Contract.of_channels("denoise", 3, 3), "cpu"))
    result = model.predict(batch)
    assert result.dtype == np.float32
    assert np.array_equal(result, batch.astype(np.float32) * 2)
    last = model.predict(batch.transpose(0, 2, 3, 1))
    assert np.array_equal(last, result.transpose(0, 2, 3, 1))
    assert np.array_equal(model.predict(batch[0].transpose(1, 2, 0)), result[0].transpose(1, 2, 0))


FLOATS = GENERATOR.random((1, 3, 20, 30))
WANTED = r"^give float values in \[0, 1\] as \(B, 3, H, W\), or uint8 or uint16 pixels as \(H, W, C\); the array has "


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (FLOATS * 255, WANTED + "values from "),
        (FLOATS - 0.5, WANTED + "values from -"),
        (np.where(FLOATS > 0.9, np.nan, FLOATS), WANTED + "values from nan"),
        (np.where(FLOATS > 0.9, np.inf, FLOATS), WANTED + "values from"),
        (FLOATS[:, :2], WANTED + r"the shape \(1, 2, 20, 30\)"),
        (FLOATS[:, :0], WANTED + "the shape"),
        (FLOATS[0, 0, 0], WANTED + "the shape"),
        (PIXELS.astype(np.int64), WANTED + "dtype int64"),
        (PIXELS > 3, WANTED + "dtype bool"),
        (PIXELS[None, None], r"^array \(20, 30, 3\)|give one image|^array"),
        ("no base64!", "^give encoded images as bytes or base64.*; this text is no base64"),
        (b"no image", "^image 1: not a readable image"),
        (_file()[:700], "^image 1: not a readable image"),
        ([_file(), 3], "^give encoded images.*; this is list"),
        ([], "^give encoded images.*; this is list"),
        (None, "^give encoded images.*; this is NoneType"),
        ({"images": 1}, "^give encoded images.*; this is dict"),
        (pd.DataFrame({"picture": [1]}), "^give encoded images.*; the columns are picture"),
        (pd.DataFrame({"image": [1]}), "^give encoded images.*; this is int"),
    ],
)
def test_what_cannot_be_restored_is_refused_with_what_is_wanted_first(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _model().predict(given)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tiles": 3}, "params: tile, overlap, self_ensemble, metal_threshold, mask are known; tiles is not"),
        ({"tile": 100}, "tile 100 and overlap 64 must be multiples of 16"),
        ({"self_ensemble": 2}, "self_ensemble 2: 1 .off., 4"),
        ({"mask": base64.b64encode(_file()).decode()}, "mask: this network takes an image alone"),
        ({"tile": "wide"}, "params: tile is a number, by default 512; this is 'wide'"),
        ({"tile": float("inf")}, "params: tile is a number, by default 512; this is inf"),
        ({"overlap": [64]}, r"params: overlap is a number, by default 64; this is \[64\]"),
    ],
)
def test_parameters_that_are_wrong_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _model().predict(_file(), parameters)


def test_too_many_bytes_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ValueError, match="at most 100 MiB of encoded images in one request"):
        _model().predict(["A" * (MOST_BYTES * 4 // 3 + 4)])


def test_a_file_of_few_bytes_that_declares_many_pixels_is_refused() -> None:
    stream = io.BytesIO()
    Image.new("1", (10000, 10000)).save(stream, "PNG")
    with pytest.raises(ValueError, match="10000x10000 pixels, the limit is"):
        _model().predict(stream.getvalue())


@pytest.mark.parametrize("how", ["parameter", "column", "dict"])
def test_a_mask_says_which_pixels_change(how: str) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:20] = 255
    model, file = _model(4, 3), base64.b64encode(_file(mask)).decode()
    if how == "parameter":
        result = model.predict(_file(), {"mask": file})
    elif how == "column":
        result = model.predict(pd.DataFrame({"image": [_file()], "mask": [file]}))["image"][0]
    else:
        result = model.predict({"image": _file(), "mask": file})
    changed = (_pixels(result) != PIXELS).any(axis=2)
    assert changed[mask == 0].sum() == 0
    assert changed[mask > 0].mean() > 0.9


def test_a_network_that_recognises_gives_a_score_for_each_class() -> None:
    means = PIXELS.reshape(-1, 3).mean(0)[:2] / 255
    model = _model(3, None)
    assert model.predict(_file()) == pytest.approx(means, abs=1e-5)
    assert model.predict(PIXELS) == pytest.approx(means, abs=1e-5)
    table = model.predict(pd.DataFrame({"image": [_file(), _file()]}))
    assert table.shape == (2, 2)
    assert model.predict(np.stack([PIXELS, PIXELS]).transpose(0, 3, 1, 2) / 255.0).shape == (2, 2)


def test_a_mask_is_white_where_pixels_are_missing() -> None:
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    assert is_missing(grey).tolist() == [[False, False, True, True]]
    assert is_missing(np.repeat(grey[..., None], 3, axis=2)).tolist() == [[False, False, True, True]]
    assert is_missing(np.array([[32767, 32768]], np.uint16)).tolist() == [[False, True]]


def test_torch_is_not_asked_for_gradients() -> None:
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return images

    ImageModel(ImageRestorer(network, Contract.of_channels("denoise", 3, 3), "cpu")).predict(PIXELS)
    assert seen == [False]


def _noise_model() -> ImageModel:
    """Adds the noise level to the image."""
    contract = Contract(task="denoise", kind="image", inputs=2, outputs=1, noise_level=(10, 30))
    return ImageModel(ImageRestorer(lambda x: x[:, :1] + x[:, 1:], contract, "cpu"))


@pytest.mark.parametrize(
    ("parameters", "level"), [({}, 20), ({"noise_level": None}, 20), ({"noise_level": 7}, 7), ({"noise_level": "0"}, 0)]
)
def test_the_noise_level_is_a_parameter_of_the_models_that_take_it(parameters: dict[str, Any], level: int) -> None:
    restored = _noise_model().predict(PIXELS // 2, parameters)
    assert np.array_equal(restored, PIXELS // 2 + level)


def test_floats_hold_the_noise_level_themselves() -> None:
    stack = np.full((1, 2, 20, 30), 0.25, dtype=np.float32)
    assert np.array_equal(_noise_model().predict(stack), np.full((1, 1, 20, 30), 0.5, dtype=np.float32))
    with pytest.raises(ValueError, match="an array of floats holds the noise level as its last channel"):
        _noise_model().predict(stack, {"noise_level": 25})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"noise_level": "much"}, "noise_level is a number, by default the middle of the range of training; this is"),
        ({"noise_level": 300}, "noise level 300: use 0 to 255"),
    ],
)
def test_an_impossible_noise_level_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _noise_model().predict(_file(), parameters)


def test_a_model_that_takes_no_noise_level_knows_no_such_parameter() -> None:
    with pytest.raises(ValueError, match="metal_threshold, mask are known; noise_level is not"):
        _model().predict(_file(), {"noise_level": 25})
