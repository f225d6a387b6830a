"""What the settings of the exactly equivariant networks have in common: how many fields a width gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from components.equivariance.groups import C4, Group
from components.networks.blocks import MOST_CHANNELS, NetworkSettings, Norm
from components.registry import check_between, check_one_of

Match = Literal["parameters", "channels"]
MATCHES: tuple[Match, ...] = ("parameters", "channels")


@dataclass(frozen=True, kw_only=True)
class GroupNetworkSettings(NetworkSettings):
    """Base class of the settings of a network out of group convolutions, of which a subclass names the group.

    Attributes:
        group: of the network.
    """

    group: ClassVar[Group] = C4

    width: int = 64
    """Channels of the plain network with which this one is compared."""
    depth: int
    """How deep the network is."""
    norm: Norm = "batch"
    """"batch" normalises each field by statistics over images, elements and pixels; "none" does not."""
    match: Match = "parameters"
    """In what it equals the plain network of this width. "parameters": it has width / sqrt(t) fields, rounded, so
    sqrt(t) times as many channels, where t is 4 under C4 and 8 under D4. "channels": it has width / t fields, so 1 / t
    of the parameters."""

    def __post_init__(self) -> None:
        check_between(self, width=(1, MOST_CHANNELS))
        check_one_of(self, match=MATCHES)
        if self.match == "channels" and self.width % self.group.order:
            fitting = self.width + -self.width % self.group.order
            raise ValueError(
                f"width: {self.width}: does not divide by {self.group.order} into regular fields: use {fitting}, or "
                "match: parameters"
            )

    @property
    def channels(self) -> dict[str, int]:
        """The channels of the maps that the width gives, all fields together."""
        return {"width": self.group.order * self.num_fields()}

    def num_fields(self, level: int = 0) -> int:
        """Return the number of regular fields.

        Args:
            level: of the resolution; the plain network doubles its channels from each to the next.
        """
        width = self.width * 2**level
        if self.match == "channels":
            return width // self.group.order
        return max(1, math.floor(width / math.sqrt(self.group.order) + 0.5))
