"""Keys of params.yaml that were renamed; the validation message for an old key names the new one."""

from __future__ import annotations

import re

_RENAMED = {
    r"preprocess\.draws": "preprocess.realizations",
    r"train\.images_at_once": "train.micro_batch_size",
    r"train\.task_on_copies": "train.task_loss_on_transformed",
    r"evaluate\.pictures": "evaluate.comparison_images",
    r"(tasks\.inpaint\.degradation|tasks\.inpaint\.out_of_distribution\.[^.]+)\.holes": r"\1.masks",
}
"""Pattern of an old key -> the new key."""


def new_name(key: str) -> str | None:
    """Returns the present name of an old key; None if the key is not an old one."""
    for old, new in _RENAMED.items():
        if found := re.fullmatch(old, key):
            return found.expand(new)
    return None
