"""The history of a running training grows where a dvc.yaml of its own has its plots, and is gone at the end."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from pipeline.stages.live_history import live_history

pytestmark = pytest.mark.unit
FOLDER = Path("results/live")


def rows() -> list[dict[str, str]]:
    """What a reader of the file sees now."""
    with (FOLDER / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_each_report_is_in_the_file_at_once_and_the_plots_name_its_columns() -> None:
    with live_history() as history:
        assert rows() == []
        for step in (5, 10):
            history.add(step, {"task_loss": 1 / step, "penalty/conv1": 0.5} | ({"val_score": 20.0} if step > 5 else {}))
            assert [row["step"] for row in rows()] == [str(each) for each in (5, 10) if each <= step]
        assert [(row["task_loss"], row["val_score"]) for row in rows()] == [("0.2", ""), ("0.1", "20.0")]
        assert (FOLDER / "dvc.yaml").read_text().startswith("# eqreg train writes this file")
        plots = [each for plot in yaml.safe_load((FOLDER / "dvc.yaml").read_text())["plots"] for each in plot.values()]
        columns = rows()[0].keys()
        assert all({plot["x"], *plot["y"]["history.csv"]} <= columns for plot in plots)
    assert not FOLDER.exists()


def test_after_a_failure_it_stays_until_the_next_training() -> None:
    def fail() -> None:
        with live_history() as history:
            history.add(5, {"task_loss": 0.5})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(rows()) == 1
    with live_history():
        assert rows() == []


def test_where_it_cannot_be_written_the_training_goes_on() -> None:
    Path("results").write_text("a file")
    with live_history() as history:
        history.add(5, {"task_loss": 0.5})
    assert Path("results").read_text() == "a file"
