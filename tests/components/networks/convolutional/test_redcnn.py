"""RED-CNN: what its fingerprint cannot say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("size", "pads"), [((5, 30), (8, 9)), ((22, 12), (0, 0)), ((20, 21), (1, 1))])
def test_redcnn_sees_a_small_image_reflected_at_its_borders(size: tuple[int, int], pads: tuple[int, int]) -> None:
    """Reflection without repeating the border; numpy's rule, which torch's own padding refuses beyond the size."""
    network = random("redcnn")
    image = stack(network, *size)
    rows, columns = (max(0, 22 - side) for side in size)
    around = [(0, 0), (0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)]
    wide = torch.from_numpy(np.pad(image.numpy(), around, mode="reflect"))
    expected = network.published(wide)[:, :, around[2][0] :, around[3][0] :][..., : size[0], : size[1]]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=1e-12)
