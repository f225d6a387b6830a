"""A folder of small packs, as `preprocess` leaves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.data.packs import Entry, ShardWriter, write_index

PACKS = ["train", "val", "test", "out_of_distribution/noisy", "auxiliary/train", "auxiliary/fixed"]


def make_packs(folder: Path, num_images: int = 6, side: int = 64, seed: int = 0) -> Path:
    """Packs as `preprocess` leaves them, with several shards in train, and a list that is no part of them."""
    generator = np.random.default_rng(seed)
    for name in PACKS:
        (folder / name).mkdir(parents=True)
        writer = ShardWriter(folder / name, shard_bytes=2 * 3 * side * side)
        for number in range(num_images if name == "train" else 2):
            image = generator.integers(0, 256, (3, side, side)).astype(np.uint8)
            writer.add(Entry(f"image{number}", f"scene{number}", side, side), image)
        write_index(folder / name, writer.close())
    (folder / "unusable.csv").write_text("name,reason\n")
    return folder
