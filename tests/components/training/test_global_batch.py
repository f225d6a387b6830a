"""The global batch is the same whoever shares it, and pairs stay whole."""

from collections import Counter

import pytest

from components.training.global_batch import Pairing, WorkerBatch, count_pairs, worker_batch

pytestmark = pytest.mark.unit

CASES: list[tuple[int, Pairing, int]] = [
    (16, "none", 0),
    (16, "replace", 4),
    (16, "replace", 8),
    (8, "append", 8),
    (24, "append", 4),
    (24, "replace", 8),
]


def _pairs_and_singles(shares: list[WorkerBatch]) -> tuple[Counter[int], Counter[int]]:
    pairs, unpaired = Counter[int](), Counter[int]()
    for share in shares:
        pairs.update(share.indices[: share.num_pairs])
        unpaired.update(share.indices[share.num_pairs :])
    return pairs, unpaired


@pytest.mark.parametrize(("batch_size", "pairing", "num_pairs"), CASES)
@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_the_shares_together_are_the_batch_of_one_worker_and_none_is_much_larger(
    batch_size: int, pairing: Pairing, num_pairs: int, num_workers: int
) -> None:
    whole = _pairs_and_singles([worker_batch(batch_size, pairing, num_pairs, 0, 1)])
    shares = [worker_batch(batch_size, pairing, num_pairs, rank, num_workers) for rank in range(num_workers)]
    assert _pairs_and_singles(shares) == whole
    assert max(share.num_pairs for share in shares) - min(share.num_pairs for share in shares) <= 1
    assert max(share.num_images for share in shares) - min(share.num_images for share in shares) <= 2
    assert {share.batch_images for share in shares} == {sum(share.num_images for share in shares)}


@pytest.mark.parametrize(("batch_size", "pairing", "num_pairs"), CASES)
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [None, 2, 3, 5])
@pytest.mark.parametrize("counts_transformed", [True, False])
def test_means_over_shares_and_their_parts_make_the_mean_over_the_batch(
    batch_size: int,
    pairing: Pairing,
    num_pairs: int,
    num_workers: int,
    micro_batch_size: int | None,
    counts_transformed: bool,
) -> None:
    """By the factors, of figures of images and of pairs that are all different."""
    image = [float(index) ** 1.5 for index in range(batch_size)]
    whole = worker_batch(batch_size, pairing, num_pairs, 0, 1)
    counted = [image[index] for index in whole.indices]
    counted += [image[index] for index in whole.indices[:num_pairs]] if counts_transformed else []
    task = penalty = 0.0
    for rank in range(num_workers):
        micro_batches = worker_batch(batch_size, pairing, num_pairs, rank, num_workers).micro_batches(micro_batch_size)
        for part in micro_batches:
            assert micro_batch_size is None or part.num_images <= micro_batch_size
            own = [image[index] for index in part.indices]
            own += own[: part.num_pairs] if counts_transformed else []
            task += part.task_factor(counts_transformed) * sum(own) / len(own) / num_workers
            if part.num_pairs:
                mean = sum(image[index] for index in part.indices[: part.num_pairs]) / part.num_pairs
                penalty += part.penalty_factor * mean / num_workers
    assert task == pytest.approx(sum(counted) / len(counted))
    if num_pairs:
        assert penalty == pytest.approx(sum(image[index] for index in whole.indices[:num_pairs]) / num_pairs)


def test_a_part_that_could_hold_no_pair_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"train\.micro_batch_size: 1 holds no pair: use 2 or more"):
        worker_batch(16, "replace", 4, 0, 2).micro_batches(1)


@pytest.mark.parametrize(
    ("pairing", "num_pairs", "originals", "unpaired", "num_images"),
    [
        ("none", 0, [], range(8), 8),
        ("replace", 2, [0, 1], [4, 5, 6, 7], 8),  # 2 and 3 make room for the copies
        ("replace", 4, [0, 1, 2, 3], [], 8),
        ("append", 2, [0, 1], [2, 3, 4, 5, 6, 7], 10),
        ("append", 8, range(8), [], 16),
    ],
)
def test_an_index_means_the_same_image_with_and_without_pairs(
    pairing: Pairing, num_pairs: int, originals: list[int], unpaired: list[int], num_images: int
) -> None:
    share = worker_batch(8, pairing, num_pairs, 0, 1)
    assert share.indices == (*originals, *unpaired)
    assert share.num_pairs == num_pairs
    assert share.num_images == num_images


@pytest.mark.parametrize(
    ("batch_size", "pairing", "fraction", "expected"),
    [
        (16, "none", 0.25, 0),
        (16, "replace", 0.25, 4),
        (16, "replace", 0.5, 8),
        (16, "append", 1.0, 16),
        (10, "replace", 0.3, 3),  # 0.3 * 10 is 3 only to rounding
        (12, "replace", 0.333333, 4),
    ],
)
def test_pairs_are_the_fraction_of_the_batch(batch_size: int, pairing: Pairing, fraction: float, expected: int) -> None:
    assert count_pairs(batch_size, pairing, fraction) == expected


@pytest.mark.parametrize(("pairing", "fraction"), [("replace", 0.75), ("replace", 0.0), ("append", 1.25)])
def test_a_fraction_that_the_pairing_cannot_hold_names_its_key_and_the_limit(pairing: Pairing, fraction: float) -> None:
    highest = "0.5" if pairing == "replace" else "1"
    with pytest.raises(ValueError, match=rf"equivariance\.pair_fraction: {fraction} .*'{pairing}'.*at most {highest}"):
        count_pairs(16, pairing, fraction)


@pytest.mark.parametrize(
    ("batch_size", "fraction"), [(16, 0.3), (16, 0.01), (3, 0.5), (7, 0.5), (30, 0.32), (700, 0.1234)]
)
def test_a_fraction_of_no_whole_number_comes_with_one_that_works(batch_size: int, fraction: float) -> None:
    with pytest.raises(ValueError, match=r"equivariance\.pair_fraction: .* train\.batch_size .*: use ") as caught:
        count_pairs(batch_size, "replace", fraction)
    suggested = float(str(caught.value).rsplit(" ", 1)[1])
    assert count_pairs(batch_size, "replace", suggested) >= 1


def test_a_batch_of_one_image_holds_no_pair_and_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"use a train\.batch_size of 2 or more"):
        count_pairs(1, "replace", 0.5)


@pytest.mark.parametrize(
    ("batch_size", "pairing", "num_pairs", "num_workers", "what"),
    [(3, "none", 0, 4, "3 images"), (16, "replace", 3, 4, "3 pairs"), (16, "append", 1, 2, "1 pairs")],
)
def test_more_workers_than_the_batch_can_feed_are_refused_with_the_keys(
    batch_size: int, pairing: Pairing, num_pairs: int, num_workers: int, what: str
) -> None:
    message = rf"train\.batch_size: {batch_size} images hold {what}.*{num_workers} workers.*train\.num_workers"
    with pytest.raises(ValueError, match=message):
        worker_batch(batch_size, pairing, num_pairs, 0, num_workers)
