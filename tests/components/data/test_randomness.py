"""Draws are functions of their key."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from components.data.randomness import Stream, generator, torch_generator

pytestmark = pytest.mark.process


def _numbers(*key: int, stream: Stream = Stream.TRAINING_IMAGE) -> tuple[float, ...]:
    return tuple(generator(0, stream, *key).random(4))


def test_the_same_key_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = _numbers(3, 7)
    generator(0, Stream.TRAINING_IMAGE, 3, 6).random(1000)
    torch.rand(10)
    np.random.default_rng(0).random(10)
    assert _numbers(3, 7) == first


def test_numbers_are_the_ones_of_numpys_philox_for_the_key_in_its_order() -> None:
    sequence = np.random.SeedSequence([5, 1, 20, 300])
    expected = np.random.Generator(np.random.Philox(sequence)).random(8)
    assert np.array_equal(generator(5, Stream.TRAINING_IMAGE, 20, 300).random(8), expected)


def test_every_part_of_a_key_changes_the_numbers() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (256, 0), (0, 256), (2**32 - 1, 0), (0, 2**32 - 1), (0, 0, 1)]
    drawn = {_numbers(*key) for key in keys}
    drawn |= {tuple(generator(1, Stream.TRAINING_IMAGE, 0, 0).random(4))}
    drawn |= {_numbers(0, 0, stream=stream) for stream in Stream if stream != Stream.TRAINING_IMAGE}
    assert len(drawn) == len(keys) + 1 + len(Stream) - 1


def test_the_numbers_of_the_streams_are_part_of_every_result_and_stay() -> None:
    assert {stream.name: int(stream) for stream in Stream} == {
        "INITIAL_WEIGHTS": 0,
        "TRAINING_IMAGE": 1,
        "TURN": 2,
        "FIXED_PAIR": 3,
        "STOCHASTIC_DEPTH": 4,
    }


def test_neighbouring_keys_are_uncorrelated() -> None:
    draws = np.array([generator(0, Stream.TRAINING_IMAGE, step, 0).standard_normal(2000) for step in range(20)])
    correlations = np.corrcoef(draws)[np.triu_indices(20, 1)]
    # Standard deviation 1 / sqrt(2000) = 0.022; the largest of 190 stays below 5 of them.
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)
    assert correlations.std() == pytest.approx(1 / np.sqrt(2000), rel=0.25)


def test_torchs_generator_is_a_function_of_the_key_too() -> None:
    def drawn(*key: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=torch_generator(0, Stream.TURN, *key)).tolist())

    assert drawn(9) == drawn(9)
    assert len({drawn(step) for step in range(50)}) == 50


def test_another_process_draws_the_same() -> None:
    code = "from components.data.randomness import *; print(generator(1, Stream.TURN, 2, 3).integers(2**60))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == generator(1, Stream.TURN, 2, 3).integers(2**60)
