"""Images of every kind through a network, and back with the same kind, depth and alpha."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from components.data.readers.images import DecodedImage
from components.degradations.holes import with_holes
from components.inference.contract import Contract
from components.inference.restorer import LEAST_SIDE, ImageRestorer, Options
from components.networks import build_network

pytestmark = pytest.mark.unit

GENERATOR = np.random.default_rng(0)


def _restorer(network: Callable[[Tensor], Tensor], inputs: int = 3, outputs: int = 3, scale: int = 1) -> ImageRestorer:
    return ImageRestorer(network, Contract.of_channels("denoise", inputs, outputs, scale), "cpu")


def _image(*shape: int, dtype: type = np.uint8, alpha: bool = False) -> DecodedImage:
    white = np.iinfo(dtype).max
    values = GENERATOR.integers(0, white, shape, dtype=dtype, endpoint=True)
    held = GENERATOR.integers(0, white, shape[:2], dtype=dtype, endpoint=True) if alpha else None
    return DecodedImage(values, held, "PNG", None, None, ())


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (4, 7), (40, 33), (4, 7, 3), (40, 33, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_identity_gives_every_image_back(colours: int, shape: tuple[int, ...], dtype: type) -> None:
    image = _image(*shape, dtype=dtype, alpha=True)
    restored = _restorer(lambda x: x, colours, colours).restore(image, Options(tile=32, overlap=16))
    assert restored.pixels.dtype == dtype
    assert np.array_equal(restored.pixels, image.pixels)
    assert np.array_equal(restored.alpha, image.alpha)


def test_the_channels_of_a_colour_image_go_one_by_one_through_a_network_of_grey() -> None:
    image = _image(20, 30, 3)
    restored = _restorer(lambda x: x.square(), 1, 1).restore(image)
    assert np.array_equal(restored.pixels, np.rint((image.pixels / 255.0) ** 2 * 255).astype(np.uint8))


def test_a_grey_image_comes_out_of_a_network_of_colours_as_luma() -> None:
    image, factors = _image(20, 30), torch.tensor([0.9, 0.5, 0.1])[:, None, None]
    restored = _restorer(lambda x: x * factors).restore(image)
    luma = 0.299 * 0.9 + 0.587 * 0.5 + 0.114 * 0.1
    assert np.abs(restored.pixels - image.pixels * luma).max() <= 0.5 + 1e-3


def test_an_image_of_a_few_pixels_is_extended_by_its_border_for_the_network_and_cropped_after() -> None:
    seen = []

    def network(images: Tensor) -> Tensor:
        seen.append(images)
        return images

    image = _image(2, 5)
    restored = _restorer(network, 1, 1).restore(image)
    assert restored.pixels.shape == (2, 5)
    (given,) = seen
    assert given.shape == (1, 1, LEAST_SIDE, LEAST_SIDE)
    assert torch.equal(given[0, 0, 2:, :5], given[0, 0, 1:2, :5].expand(LEAST_SIDE - 2, 5))


def test_an_enlarged_image_keeps_its_alpha_at_the_new_size() -> None:
    image = _image(20, 30, 3, alpha=True)
    image.alpha[:] = 255  # type: ignore[index]
    image.alpha[:, :15] = 0  # type: ignore[index]
    restored = _restorer(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3), scale=2).restore(image)
    assert restored.pixels.shape == (40, 60, 3)
    assert restored.alpha is not None
    assert restored.alpha.shape == (40, 60)
    assert restored.alpha[:, :26].max() == 0
    assert restored.alpha[:, 34:].min() == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_missing_pixels_alone_change_and_the_network_gets_them_filled_with_the_mask(channels: int) -> None:
    seen = []

    def network(images: Tensor) -> Tensor:
        seen.append(images)
        return images[:, :-1] * 0

    image = _image(20, 30, *([3] if channels == 3 else []))
    mask = np.zeros((20, 30), bool)
    mask[3:6, 10:20] = True
    restored = _restorer(network, channels + 1, channels).restore(image, mask=mask)
    assert np.array_equal(restored.pixels[~mask], image.pixels[~mask])
    assert (restored.pixels[mask] == 0).all()
    floats = np.atleast_3d(image.pixels).transpose(2, 0, 1).astype(np.float32) / 255
    assert np.array_equal(seen[0][0].numpy(), with_holes(floats, mask))


@pytest.mark.parametrize(
    ("inputs", "outputs", "mask", "message"),
    [
        (3, 3, (20, 30), "mask: this network takes an image alone"),
        (4, 3, None, "the network wants an image and a mask of its missing pixels"),
        (4, 3, (20, 31), "mask: 31x20 pixels, its image has 30x20"),
        (3, 1, None, "a network of kind ct restores no image"),
    ],
)
def test_an_input_of_another_kind_is_refused(
    inputs: int, outputs: int, mask: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _restorer(lambda x: x, inputs, outputs).restore(
            _image(20, 30, 3), mask=None if mask is None else np.ones(mask, bool)
        )


def test_a_network_that_fails_is_named_in_one_line_with_the_size_of_the_image() -> None:
    def network(images: Tensor) -> Tensor:
        raise RuntimeError("Output size is too small\nand more")

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared whole
        _restorer(network).restore(_image(20, 30, 3))
    assert str(caught.value) == "30x20 pixels, which this model fails on (Output size is too small)"


def test_several_threads_use_the_network_one_after_another() -> None:
    inside, most = [0], [0]

    def network(images: Tensor) -> Tensor:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return images

    restorer, image = _restorer(network), _image(20, 30, 3)
    threads = [threading.Thread(target=restorer.restore, args=(image,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_network_that_recognises_gets_luma_if_it_wants_grey_and_gives_a_score_for_each_class() -> None:
    contract = Contract.of_channels("classify", 1, None, classes=2)
    restorer = ImageRestorer(lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1), contract, "cpu")
    image = DecodedImage(np.full((8, 8, 3), (255, 0, 0), np.uint8), None, "PNG", None, None, ())
    assert restorer.scores(image) == pytest.approx([0.299, -0.299], abs=2e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_do_not_become_pixels_or_scores(value: float) -> None:
    restorer = _restorer(lambda x: torch.full_like(x, value))
    with pytest.raises(ValueError, match="no finite numbers: its training may have diverged"):
        restorer.restore(_image(20, 30, 3))
    with pytest.raises(ValueError, match="no finite numbers"):
        restorer.restore_floats(np.zeros((1, 3, 20, 30), dtype=np.float32))
    labels = ImageRestorer(
        lambda x: torch.full((len(x), 2), value), Contract.of_channels("c", 3, None, classes=2), "cpu"
    )
    with pytest.raises(ValueError, match="no finite numbers"):
        labels.scores(_image(8, 8, 3))


# ------------------------------------------------------------------------------------------------ the noise level


def _level_contract(noise_level: tuple[float, ...] = (5, 55), colours: int = 1) -> Contract:
    return Contract(task="denoise", kind="image", inputs=colours + 1, outputs=colours, noise_level=noise_level)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize(("wanted", "level"), [(None, 30), (0, 0), (51, 51), (255, 255)])
def test_a_network_gets_the_noise_level_as_its_last_channel(colours: int, wanted: float | None, level: float) -> None:
    seen = []

    def network(stack: Tensor) -> Tensor:
        seen.append(stack[:, -1])
        return stack[:, :-1]

    image = _image(40, 33, 3)
    restorer = ImageRestorer(network, _level_contract(colours=colours), "cpu")
    restored = restorer.restore(image, Options(tile=32, overlap=16, noise_level=wanted, self_ensemble=4))
    assert np.array_equal(restored.pixels, image.pixels)
    assert {float(value) for levels in seen for value in levels.unique()} == {np.float32(level / 255)}


@pytest.mark.parametrize(
    ("noise_level", "wanted", "message"),
    [
        (None, 25, "noise level 25: this network takes none: leave it out"),
        ((), None, "needs a noise level, and the range of its training is unknown: give one"),
        ((5, 50), -1, "noise level -1: use 0 to 255"),
        ((5, 50), 256, "noise level 256: use 0 to 255"),
        ((), float("nan"), "noise level nan: use 0 to 255"),
    ],
)
def test_an_impossible_noise_level_is_refused(
    noise_level: tuple[float, ...] | None, wanted: float | None, message: str
) -> None:
    contract = Contract(task="", kind="image", inputs=2 - (noise_level is None), outputs=1, noise_level=noise_level)
    with pytest.raises(ValueError, match=message):
        ImageRestorer(lambda x: x[:, :1], contract, "cpu").restore(_image(20, 30), Options(noise_level=wanted))


@pytest.mark.parametrize("noise_level", [None, (), (5.0, 50.0)])
def test_a_contract_comes_back_from_its_metadata(noise_level: tuple[float, ...] | None) -> None:
    contract = Contract(task="denoise", kind="image", inputs=2, outputs=1, noise_level=noise_level)
    values = json.loads(json.dumps(contract.as_dict()))
    assert ("noise_level" in values) == (noise_level is not None)
    assert Contract.from_dict(values) == contract
    assert contract.colours == (2 if noise_level is None else 1)


def test_the_contract_of_a_network_has_the_range_of_its_training() -> None:
    network = build_network("ffdnet", width=4, depth=2, in_channels=4, out_channels=3)
    contract = Contract.of_network(network, "denoise", {"noise_level": [5, 50]})
    assert (contract.kind, contract.colours, contract.noise_level) == ("image", 3, (5, 50))
    assert "It was trained on 5 to 50; without a level the image model takes 27.5." in contract.text()
    unknown = Contract.of_network(network, "denoise")
    assert unknown.noise_level == ()
    assert "The range of its training is unknown, so a level must be given." in unknown.text()
    plain = Contract.of_network(build_network("dncnn", width=4, depth=2), "denoise", {"noise_level": [5, 50]})
    assert plain.noise_level is None
