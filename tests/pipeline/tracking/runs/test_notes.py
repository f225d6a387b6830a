"""A note says the results, and what a person has written stays."""

from __future__ import annotations

import pytest

from components.tasks.base import PSNR
from pipeline.tracking.runs.notes import of_registration, of_results, of_sweep, with_block
from tests.pipeline.tracking.runs.test_metric_names import evaluation

pytestmark = pytest.mark.unit


def test_a_block_is_replaced_and_the_rest_of_a_note_stays() -> None:
    note = with_block("", "results", "first\n\nline \\1")
    note = f"mine\n\n{with_block(note, 'registry', 'version 1')}\n\nmine, too"
    again = with_block(note, "results", "second \\g<0>")
    assert "first" not in again
    assert again.index("mine") < again.index("second \\g<0>") < again.index("version 1") < again.index("mine, too")
    assert with_block(again, "results", "second \\g<0>") == again


def test_a_block_whose_end_a_person_has_deleted_is_replaced_to_the_end() -> None:
    cut = with_block("mine", "results", "first").partition("<!-- end")[0]
    again = with_block(cut, "results", "second")
    assert "first" not in again
    assert again.startswith("mine")


def test_the_results_are_a_table_by_method_and_group() -> None:
    lines = of_results(evaluation(), PSNR).splitlines()
    assert lines[0] == "| PSNR, dB | test | test, turned | out of distribution |"
    assert lines[4] == "| restored | 30.00 | 30.00 | 30.00 |"
    assert "Gain over classical, test images: +1.00 [+0.50, +1.50]" in lines
    assert lines[-1].endswith("0.1000")


def test_without_an_interval_none_is_shown() -> None:
    assert "Gain over classical, test images: +1.00" in of_results(evaluation(low=None), PSNR).splitlines()


def test_the_decision_and_the_best_trial_are_named() -> None:
    assert of_registration("eqreg-denoise", "3", "champion", "there was no champion") == (
        "Registered as `models:/eqreg-denoise/3`: champion (there was no champion)."
    )
    said = of_sweep((21.456, 2), 21.4, 1, PSNR)
    assert "Best trial: 2, PSNR, dB on validation 21.46." in said
    assert "Control (weight 0, the same pairs): 21.40." in said
    assert "Failed trials: 1." in said
    assert of_sweep(None, None, 0, PSNR) == "No trial finished."
