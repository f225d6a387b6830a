"""docs/reference is what the generator makes of the code, on any terminal and in any folder."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import pytest

from docs.generate.__main__ import PAGES, REFERENCE, ROOT
from docs.generate.commands import VARIABLES, targets
from docs.generate.comments import comments
from docs.generate.files import files, reported
from docs.generate.markdown import docs_of_fields, in_yaml, table, text
from pipeline.config.values import parse_values, read_values
from tests.test_architecture import ORDER

pytestmark = pytest.mark.unit

OF_LIBRARIES = {"AWS_PROFILE", "AWS_ENDPOINT_URL", "PGPASSWORD", "RAY_TMPDIR", "RAY_ADDRESS"}
"""Variables that a library reads, and no module of ours."""


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_of_the_reference_are_current(name: str) -> None:
    path = REFERENCE / name
    is_current = path.exists() and path.read_text(encoding="utf-8") == PAGES[name](ROOT)
    assert is_current, f"docs/reference/{name}: the code says something else now: run 'make docs'"


def test_nothing_else_lies_beside_the_generated_pages() -> None:
    assert sorted(path.name for path in REFERENCE.iterdir()) == sorted(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_does_not_depend_on_the_terminal_or_the_folder(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = (REFERENCE / name).read_text(encoding="utf-8")  # current, as the test above says
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "COLUMNS": "40",
        "TERMINAL_WIDTH": "40",
        "FORCE_COLOR": "1",
        "TERM": "xterm-256color",
    }.items():
        monkeypatch.setenv(variable, value)
    assert PAGES[name](ROOT) == here
    assert "\x1b" not in here
    assert str(ROOT) not in here
    assert str(Path.home()) + "/" not in here


def test_every_key_of_params_has_a_comment() -> None:
    source = (ROOT / "params.yaml").read_text()
    said = comments(source)

    def keys(values: dict[str, object], above: str = "") -> list[str]:
        found = []
        for key, value in values.items():
            name = f"{above}{key}"
            inner = keys(value, f"{name}.") if isinstance(value, dict) and not said.get(name) else [name]
            found += inner
        return found

    of_tasks = re.compile(r"tasks\.\w+\.(degradation|out_of_distribution|rotations)")  # their fields have docstrings
    assert [key for key in keys(parse_values(source, "")) if not said.get(key) and not of_tasks.match(key)] == []


def test_every_row_of_the_page_of_params_has_a_meaning_that_is_more_than_its_choices() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGES["params.md"](ROOT).splitlines() if line.startswith("| `")]
    of_params = {cells[0].strip("`"): cells for cells in rows if re.match(r"`(task|seed|[a-z]+\.[a-z_.]+)`", cells[0])}
    assert len(of_params) > 70
    for name, cells in of_params.items():
        assert len(cells) == 4, name
        choices = set(re.split(", | or ", cells[1]))
        assert set(cells[3].split(r" \| ")) != choices, name
    assert of_params["preprocess.remaining"][1] == "val, test: a number of at least 0 and below 1"
    assert of_params["preprocess.colour"][3] == "what all images are converted to"


def test_a_comment_belongs_to_the_key_on_its_line_or_below_it() -> None:
    source = (
        "# About the file,\n# in two lines.\n\na: 1   # of a\nb:     # of b\n  # of c, above\n"
        "  c: [1, 2]   # and beside\n"
        "  d: {e: 1}   # of d,\n              # goes on\n  # of f\n  f:\n    - x  # of a part of f\n  g: 2\n"
    )
    assert comments(source) == {
        "": "About the file, in two lines.",
        "a": "of a",
        "b": "of b",
        "b.c": "of c, above and beside",
        "b.d": "of d, goes on",
        "b.f": "of f of a part of f",
    }


def test_the_docstrings_of_fields_are_those_of_the_class_and_of_its_bases() -> None:
    from components.training.optimizers import AdamW

    said = docs_of_fields(AdamW)
    assert said["beta1"] == "Decay of the mean of the gradients."
    assert said["beta2"].endswith("0.99 is better than 0.999.")


def test_text_shows_what_markdown_would_take_for_itself() -> None:
    assert text("C<N> of *conv* in ``a_b|c`` for snake_case") == "C&lt;N> of \\*conv\\* in `a_b|c` for snake_case"
    assert table(["a"], [["`x | y`"]]) == "| a |\n| --- |\n| `x \\| y` |"


def test_values_are_yaml_that_reads_back() -> None:
    for value in ({"profile": "geometric", "decay": 0.9}, [{"*conv*": "regular"}, "auto", None, True, 1e-6], {"a": []}):
        assert parse_values(f"value: {in_yaml(value)}", "")["value"] == value


def test_every_variable_of_ours_is_documented_and_every_documented_one_is_read() -> None:
    code = [
        path for top in ("components", "pipeline") for path in (ROOT / top).rglob("*") if path.suffix in (".py", ".sh")
    ]
    read = "\n".join(path.read_text() for path in code)
    assert set(re.findall(r"\bEQREG_[A-Z]+\b", read)) == {name for name in VARIABLES if name.startswith("EQREG_")}
    assert [name for name in VARIABLES.keys() - OF_LIBRARIES if not re.search(rf"\b{name}\b", read)] == []


def test_every_target_that_make_names_is_listed() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert {target for target, _ in targets(ROOT)} == set(phony[1].split()) - {"always"}


def test_every_output_of_the_pipeline_has_files_and_every_metric_file_is_among_them() -> None:
    pipeline, described = read_values(ROOT / "dvc.yaml"), files()
    for stage in pipeline["stages"].values():
        for out in stage.get("outs", []):
            assert any(name.startswith(f"{next(iter(out))}/") for name in described), out
    for metrics in pipeline["metrics"]:
        assert metrics in described
    assert not [name for name in described if fnmatchcase(name, "results/*") and not described[name]["holds"]]
    assert {"task_loss", "gradient_ratio", "penalty/LAYER"} <= reported(ROOT).keys()


def test_what_the_code_cites_of_the_pages_is_there() -> None:
    cited = []
    for top in ("benchmarks", "components", "pipeline", "tests", "tune_spaces"):
        for path in (ROOT / top).rglob("*"):
            if path.suffix in (".py", ".yaml") and path != Path(__file__):
                found = re.findall(r'(docs/[\w/-]+\.md)(?:, "([^"]+)")?', " ".join(path.read_text().split()))
                cited += [(path.name, page, section) for page, section in found]
    assert len(cited) >= 10
    for name, page, section in cited:
        headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
        assert not section or section in headings, f"{name}: {page} has no section {section!r}"


def test_the_tests_that_the_explanations_name_are_there() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)", written, re.MULTILINE))
    named = {
        name
        for page in (ROOT / "docs/explanation").glob("*.md")
        for name in re.findall(r"`(test_\w+)`", page.read_text())
    }
    assert len(named) > 20
    assert named - there == set()


def test_the_picture_of_the_rooms_is_the_order_of_the_packages() -> None:
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    picture = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)[0]
    everywhere = {"paths", "errors"}  # what all of pipeline may import is not drawn
    lines = [[room.split(".")[1] for room in line.split()] for line in ORDER]
    drawn = [rooms for rooms in lines if rooms[0] not in everywhere]
    arrows = re.findall(r"(\w+)(?:\[[^\]]*\])? --> (\w+)", picture)
    assert set(arrows) == {(above[0], below[0]) for above, below in pairwise(drawn)}
    for first, *others in drawn:
        assert all(re.search(rf"{first}\[.*\b{other}\b.*\]", picture) for other in others), first
