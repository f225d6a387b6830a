"""What a registered model takes and gives: one description for its metadata, its card and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["image", "masked_image", "ct", "labels"]
"""image: one image, for some networks with its noise level. masked_image: an image and a mask of its missing pixels.
ct: the LI image, the artifact image and the metal mask of a scan. labels: an image in, a score for each class out."""


NOISE_LEVEL = "noise_level"
"""Name of what a network needs, and of the entry of its metadata."""

_MOST_CLASSES = 20
"""Classes that the sentences name; a model card has a largest length."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a network takes and gives.

    Attributes:
        task: name of the task that it was trained for; empty if it is unknown.
        kind: what it takes and gives.
        inputs: number of input channels of the network.
        outputs: number of output channels, or of classes.
        scale: size of the output / size of the input.
        classes: names of the classes, in order; empty if they are unknown or there are none.
        image_size: (height, width) of the training images, if the network is meant for that size alone.
        noise_level: the lowest and the highest noise level of training, in grey levels of 255, of a network whose last
            input channel is the noise level; empty if they are unknown; None for a network that takes none.
    """

    task: str
    kind: Kind
    inputs: int
    outputs: int
    scale: int = 1
    classes: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    noise_level: tuple[float, ...] | None = None

    @property
    def colours(self) -> int:
        """Number of channels of the image that a user gives: 1 grey, 3 RGB."""
        colours = self.inputs if self.noise_level is None else self.inputs - 1
        return {"masked_image": self.inputs - 1, "ct": 1}.get(self.kind, colours)

    def chosen_noise_level(self, wanted: float | None) -> float | None:
        """Return the noise level to restore with, in grey levels of 255; None for a network that takes none.

        Args:
            wanted: the level that the user gives; None for the middle of the range of training.

        Raises:
            ValueError: the network takes no level, the level is impossible, or none is given and the range is unknown.

        Example:
            >>> contract = Contract(task="denoise", kind="image", inputs=2, outputs=1, noise_level=(5, 55))
            >>> contract.chosen_noise_level(None), contract.chosen_noise_level(50)
            (30.0, 50)
        """
        if self.noise_level is None:
            if wanted is not None:
                raise ValueError(f"noise level {wanted:g}: this network takes none: leave it out")
            return None
        if wanted is None and not self.noise_level:
            raise ValueError("this network needs a noise level, and the range of its training is unknown: give one")
        if wanted is not None and not 0 <= wanted <= 255:
            raise ValueError(f"noise level {wanted:g}: use 0 to 255, the standard deviation in grey levels of 255")
        return sum(self.noise_level) / 2 if wanted is None else wanted

    def as_dict(self) -> dict[str, Any]:
        """Return the contract as JSON's types, which `from_dict` takes; without a noise level if it takes none."""
        values = asdict(self)
        if self.noise_level is None:
            del values["noise_level"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Contract:
        """Read what `as_dict` gave; entries of later versions are left out."""
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in cls.__dataclass_fields__
        }
        return cls(**known)

    @classmethod
    def of_channels(cls, task: str, inputs: int, outputs: int | None, scale: int = 1, classes: int = 0) -> Contract:
        """Return the contract of a network with these numbers of channels.

        Args:
            task: name of the task.
            inputs: input channels.
            outputs: output channels; None for a network that gives a score for each class.
            scale: size of the output / size of the input.
            classes: number of classes, for a network without output channels.

        Raises:
            ValueError: no kind has these channels.
        """
        if outputs is None:
            return cls(task=task, kind="labels", inputs=inputs, outputs=classes)
        kinds: dict[tuple[int, int], Kind] = {
            (1, 1): "image", (3, 3): "image", (2, 1): "masked_image", (4, 3): "masked_image", (3, 1): "ct",
        }  # fmt: skip
        if (inputs, outputs) not in kinds:
            raise ValueError(f"a network of {inputs} input and {outputs} output channels: call it from Python")
        return cls(task=task, kind=kinds[inputs, outputs], inputs=inputs, outputs=outputs, scale=scale)

    @classmethod
    def of_network(cls, network: Any, task: str, metadata: Mapping[str, Any] | None = None) -> Contract:
        """Return the contract of a network.

        Args:
            network: of ``build_network``.
            task: name of the task that it was trained for.
            metadata: of its model file, which names the classes of a classification.

        Raises:
            ValueError: a network of such channels has no form that people call.
        """
        inputs, outputs = int(network.in_channels), getattr(network, "out_channels", None)
        classes = getattr(network, "classes", None)
        scale = int(getattr(network, "scale", 1))
        takes_level = NOISE_LEVEL in (getattr(network, "needs", None) or ())
        contract = cls.of_channels(task, inputs - takes_level, None if classes else outputs, scale, int(classes or 0))
        kept: tuple[str, ...] = ("classes", "image_size")
        if takes_level:
            if contract.kind != "image":
                raise ValueError(f"a network of kind {contract.kind} with a noise level: call it from Python")
            contract = replace(contract, inputs=inputs, noise_level=())
            kept += (NOISE_LEVEL,)
        stated: dict[str, Any] = {key: tuple(value) for key, value in (metadata or {}).items() if key in kept}
        return replace(contract, **stated)

    def text(self) -> str:
        """Return the contract in sentences, for people: what the image model and the tensor program take and give."""
        colours = "RGB" if self.colours == 3 else "grey"
        given = f"{self.outputs} scores" if self.kind == "labels" else f"(B, {self.outputs}, {self._sizes()})"
        lines = [
            f"The tensor program takes float32 (B, {self.inputs}, H, W) in [0, 1], of any size, and gives {given}.",
        ]
        match self.kind:
            case "image":
                if self.noise_level is not None:
                    lines.append(self._level_text())
                lines.append(
                    f"The image model takes image files as bytes (PNG, JPEG, TIFF, WebP, BMP) or arrays, {colours} as "
                    "trained. It restores other channels, too. It gives the same kind, depth and channels back"
                    + (f", {self.scale} times as large." if self.scale > 1 else ".")
                )
            case "masked_image":
                lines.append(
                    f"The image model takes an image ({colours}) and `mask`, an image that is white where pixels are "
                    "missing. It changes the missing pixels alone."
                )
            case "ct":
                lines.append(
                    "The input channels are the LI image, the artifact image and the metal mask of a scan. The image "
                    "model takes a DICOM file of a CT slice as bytes and gives a derived one back. It makes the LI "
                    "image from the slice itself, as there is no sinogram. For research, not for diagnosis."
                )
            case "labels":
                lines.append(f"The image model takes an image ({colours}) and gives a score for each class.")
                if self.image_size:
                    height, width = self.image_size
                    lines.append(
                        f"An image of another size than {width}x{height} pixels, that of the training images, is "
                        "resized until it covers that size, and cropped to its centre."
                    )
                if self.classes:
                    more = len(self.classes) - _MOST_CLASSES
                    shown = ", ".join(self.classes[:_MOST_CLASSES])
                    further = f" and {more} more, which the metadata of the model names" if more > 0 else ""
                    lines.append(f"The classes, in the order of the scores: {shown}{further}.")
        return "\n".join(lines)

    def _level_text(self) -> str:
        range_text = "The range of its training is unknown, so a level must be given."
        if self.noise_level:
            low, high = self.noise_level
            seen = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            range_text = f"It was trained on {seen}; without a level the image model takes {(low + high) / 2:g}."
        return (
            "The last input channel of the tensor program is the noise level, sigma / 255 in each pixel; `noise_level` "
            f"of the image model is sigma in grey levels of 255. {range_text}"
        )

    def _sizes(self) -> str:
        return "H, W" if self.scale == 1 else f"{self.scale} H, {self.scale} W"
