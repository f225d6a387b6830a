"""Randomness as a function: every draw is keyed by what it is for, none depends on what was drawn before.

So the same batch comes out whichever worker draws it, in whatever order, before or after a crash.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for. Streams never overlap; numbers are part of the result of a seed and are never reused."""

    INITIAL_WEIGHTS = 0
    TRAINING_IMAGE = 1
    TURN = 2
    FIXED_PAIR = 3


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """A counter-based generator (Philox) for (seed, stream, key), for instance (seed, TRAINING_IMAGE, step, index).

    Keys of one stream have the same number of parts: numpy takes (1,) and (1, 0) for one key.
    Source: Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(stream), *key])))


def torch_generator(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """The same for torch, on the CPU: a generator seeded by 64 bits of (seed, stream, key)."""
    state = np.random.SeedSequence([seed, int(stream), *key]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
