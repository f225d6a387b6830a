"""What several networks share: settings, checks, both ends of a restoration network, normalisation, initialisation.

Legend: B images, C channels of the restored image, H rows, W columns, r the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from components.registry import Settings

Norm = Literal["none", "batch"]
SCALES = (1, 2, 3, 4)
MOST_CHANNELS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """Base class of the settings of a network, with its constraints on sizes.

    Attributes:
        initial: the settings that decide the initial weights alone. A model file does not hold them.
    """

    initial: ClassVar[tuple[str, ...]] = ()

    @property
    def smallest_side(self) -> int:
        """The least height and width of an input, in pixels."""
        return 1

    @property
    def channels(self) -> dict[str, int]:
        """Name of a setting -> number of channels, which regular fields of the group must divide."""
        return {}

    def channels_for(self, colours: int) -> dict[str, int]:
        """The `channels` of a network that restores images of so many colours."""
        return self.channels

    def can_turn(self, side: int) -> bool:
        """Whether the features can turn exactly with a square input of this side, in pixels.

        They cannot if the network extends such an input on one side more than on the other, or if the places at which
        it pools do not lie symmetrically.
        """
        return True

    def check_scale(self, scale: int) -> None:
        """Check that a network with these settings can have a scale that its class has.

        Args:
            scale: size of the output / size of the input.

        Raises:
            ValueError: it cannot; the text begins with the name of the setting.
        """


def check_restoration(name: str, in_channels: int, out_channels: int, scale: int) -> None:
    """Check the shape of a restoration network.

    Args:
        name: name of the network, for the error message.
        in_channels: channels of the input stack.
        out_channels: channels of the restored image.
        scale: size of the output / size of the input.

    Raises:
        ValueError: no restoration network can have this shape.
    """
    if not 1 <= out_channels <= in_channels:
        raise ValueError(
            f"{name} corrects the first out_channels of its in_channels, so 1 <= out_channels <= in_channels, "
            f"got {out_channels} and {in_channels}"
        )
    if scale not in SCALES:
        raise ValueError(f"{name} scale {scale}: use one of {', '.join(map(str, SCALES))}")


def corrected_image(inputs: Tensor, channels: int, scale: int) -> Tensor:
    """Return the image that the residual corrects: the first channels of the stack, enlarged.

    The interpolation is bicubic. It aligns the corners of the outer pixels with the corners of the image
    (``align_corners=False``), so it commutes with quarter turns.

    Args:
        inputs: input stack, ``(B, >= C, H, W)``.
        channels: C.
        scale: r.

    Returns:
        ``(B, C, rH, rW)``.
    """
    images = inputs[:, :channels]
    if scale == 1:
        return images
    # A size is passed and not a scale factor, because an exported factor is a float.
    size = (scale * images.shape[-2], scale * images.shape[-1])
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False)


def residual_image(maps: Tensor, scale: int) -> Tensor:
    """Convert the output of the last layer to an image: PixelShuffle ``(B, r^2 C, H, W)`` -> ``(B, C, rH, rW)``.

    Source: Shi et al., *Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network*, CVPR 2016 (arXiv 1609.05158).
    """
    return maps if scale == 1 else F.pixel_shuffle(maps, scale)


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """Return the layer between a convolution and its activation.

    With ``batch`` the result depends on the other images in the worker's batch. Runs with different numbers of workers
    therefore give different results. With ``none`` they do not.

    Raises:
        ValueError: ``norm`` is neither "none" nor "batch".
    """
    check_norm(norm)
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def check_norm(norm: str) -> None:
    """Check the name of a normalisation.

    Raises:
        ValueError: ``norm`` is neither "none" nor "batch".
    """
    if norm not in ("none", "batch"):
        raise ValueError(f"network norm '{norm}' is unknown: use 'none' or 'batch'")


def normalised_channels(maps: Tensor, epsilon: float, is_centred: bool = True) -> Tensor:
    """Normalise each pixel over its channels: ``(x - mean) / sqrt(variance + epsilon)``, a layer norm without weights.

    It commutes with quarter turns, and with permutations of the channels.

    Args:
        maps: ``(B, C, H, W)``.
        epsilon: added to the variance, which is that of the C values (biased).
        is_centred: whether the mean is subtracted; the variance is about the mean in both cases.

    Example:
        >>> import torch
        >>> normalised_channels(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), epsilon=0.0).flatten()
        tensor([-1.,  1.])
    """
    centred = maps - maps.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return (centred if is_centred else maps) / (variance + epsilon).sqrt()


def initialise(network: nn.Module, *last: nn.Conv2d | nn.BatchNorm2d) -> None:
    """Apply He initialisation (He et al. 2015, fan-in, ReLU) with zero biases, and set the ``last`` layers to zero.

    ``last`` holds the last layer of each residual. A residual network thus begins as the identity, which is the natural
    first estimate of a restoration. The hidden layers receive no large updates before the last layer has learned its
    scale.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer in last:
        nn.init.zeros_(layer.weight)
