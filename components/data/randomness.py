"""Counter-based randomness: every random draw has a key that states its purpose, and does not depend on earlier draws.

The same batch is therefore drawn by any worker, in any order, before or after a crash.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The purpose of a random draw.

    Streams never overlap. The results of a seed depend on the numbers of the streams, so a number is never reused.
    """

    INITIAL_WEIGHTS = 0
    TRAINING_IMAGE = 1
    TURN = 2
    FIXED_PAIR = 3
    STOCHASTIC_DEPTH = 4


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return a counter-based generator (Philox) for (seed, stream, key).

    Args:
        seed: the seed.
        stream: purpose of the draw.
        key: integers that identify the draw, for example step and index. All keys of one stream must have the same
            length, because numpy treats (1,) and (1, 0) as the same key.

    Source: Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(stream), *key])))


def torch_generator(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """Return a torch generator on the CPU, seeded by 64 bits of (seed, stream, key).

    Args:
        seed: the seed.
        stream: purpose of the draw.
        key: integers that identify the draw, see `generator`.
    """
    state = np.random.SeedSequence([seed, int(stream), *key]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
