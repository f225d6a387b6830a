"""What the pages say can be done: links lead somewhere, commands and keys exist, Python runs, tables hold the rows."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import typer.main
import yaml
from dvc.cli.parser import get_main_parser
from dvc.utils.hydra import apply_overrides
from typer._click.exceptions import NoArgsIsHelpError

from components.members import NETWORKS
from components.networks.build import network_class
from pipeline.cli import app
from pipeline.cluster.jobs.submit import STAGES
from pipeline.config.renamed import _RENAMED, new_name
from pipeline.config.schema import check_params, load_params
from pipeline.config.values import read_values
from pipeline.search_space.space import build_space
from tests.pages import PAGES, ROOT, anchors, blocks, codes, commands, links, mentions, python_blocks, table

pytestmark = pytest.mark.unit

PARAMS = read_values(ROOT / "params.yaml")
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
RESULTS = ROOT / "benchmarks/results"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and the search spaces, in which the test runs."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    shutil.copytree(ROOT / "tune_spaces", tmp_path / "tune_spaces")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    for target in links(page):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.is_relative_to(ROOT.resolve()), target
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT.resolve()).as_posix()), target


def test_every_page_of_docs_is_in_the_table_of_contents() -> None:
    listed = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in links("docs/README.md")}
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert (ROOT / page).resolve() in listed, page


@pytest.mark.parametrize("page", PAGES)
def test_paths_between_backticks_exist(page: str) -> None:
    for code in codes(page):
        is_path = re.fullmatch(r"(components|pipeline|tests|benchmarks|tune_spaces|deploy|docs|\.ci)/[\w./*-]+", code)
        if is_path and not re.search(r"\b[A-Z]+\b", code):  # tune_spaces/NAME.yaml
            assert list(ROOT.glob(code.rstrip("/"))), code


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1500
    assert len(text.splitlines()) <= 180


def test_the_picture_of_the_pipeline_is_that_of_dvc_yaml() -> None:
    (picture,) = (block.text for block in blocks("README.md") if block.language == "mermaid")
    made = {
        output if isinstance(output, str) else next(iter(output)): stage
        for stage, entry in DVC["stages"].items()
        for output in entry.get("outs", [])
    }
    edges = {
        (maker, stage)
        for stage, entry in DVC["stages"].items()
        for needed in entry["deps"]
        for output, maker in made.items()
        if Path(needed).is_relative_to(output)
    }
    assert set(re.findall(r"(\w+) --> (\w+)", picture)) == edges


# --------------------------------------------------------------------------------------------------------- commands


def test_commands_are_found() -> None:
    assert ["dvc", "repro", "--force", "--single-item", "fetch"] in commands("docs/how-to/your-data.md")
    assert ["eqreg", "train"] in mentions("README.md")


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_those_of_the_programs(page: str, project: Path) -> None:
    checks = {"eqreg": check_eqreg, "dvc": check_dvc, "make": check_make, "python": check_python}
    for program, *words in commands(page):
        checks[program](words, project)
    for program, *words in mentions(page):
        try:
            checks[program](words, project)
        except typer.BadParameter as error:
            if type(error).__name__ != "MissingParameter":  # it may be named without its arguments
                raise


def check_eqreg(words: list[str], project: Path) -> None:
    """The command's own parser takes the words; nothing is run."""
    command: Any = typer.main.get_command(app)
    name = "eqreg"
    try:
        while True:
            context = command.make_context(name, list(words))
            if not hasattr(command, "commands"):
                break
            name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    except (typer.Exit, NoArgsIsHelpError):  # --version, --help, and a group of commands alone, as "eqreg models"
        return
    if name == "submit":
        stage = context.params["stage"]
        assert stage in (*STAGES, "", "STAGE"), stage


def check_dvc(words: list[str], project: Path) -> None:
    """DVC's own parser takes the words, its stages exist, and the schema takes the params as DVC would change them."""
    arguments = get_main_parser().parse_args(words)
    if arguments.cmd == "repro":
        assert set(arguments.targets) <= set(DVC["stages"]), words
    if overrides := getattr(arguments, "set_param", None):
        target = project / "changed.yaml"
        shutil.copyfile(ROOT / "params.yaml", target)
        apply_overrides(target, [override.removeprefix("params.yaml:") for override in overrides])
        load_params(target)


def check_make(words: list[str], project: Path) -> None:
    """The targets are those of the Makefile, and so are the variables."""
    text = (ROOT / "Makefile").read_text()
    for word in words:
        variable = re.match(r"([A-Z_]+)=", word)
        assert f"$({variable[1]})" in text if variable else re.search(rf"^{re.escape(word)}:", text, re.MULTILINE), word


def check_python(words: list[str], project: Path) -> None:
    """The file or the module exists, and knows each option."""
    path = ROOT / (f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0])
    if words[:1] == ["-m"] and words[1] == "venv":
        return
    assert path.is_file(), words
    for option in words:
        if option.startswith("--"):
            assert f'"{option}"' in path.read_text(), option


# ------------------------------------------------------------------------------------------------------------- keys


def settings_of(section: str) -> set[str]:
    """What a section that chooses by name takes besides."""
    members = [network_class(name).Settings for name in NETWORKS] if section == "network" else []
    return {"name"} | {field.name for member in members for field in fields(member)}


@pytest.mark.parametrize("page", PAGES)
def test_keys_between_backticks_are_those_of_params_yaml(page: str) -> None:
    sections = "|".join(key for key, value in PARAMS.items() if isinstance(value, dict))
    for code in codes(page):
        found = re.fullmatch(rf"((?:{sections})(?:\.\w+)+)(?:[:=].*)?", code)
        if not found or re.search(r"\.(yaml|py|md|csv|png|json|jsonl|txt|safetensors|NAME)\b", found[1]):
            continue
        if new_name(found[1]) or found[1] == "network.features":  # named as old; the example of a new network
            continue
        *parents, last = found[1].split(".")
        node: Any = PARAMS
        for part in parents:
            assert part in node, code
            node = node[part]
        known = set(node) if isinstance(node, dict) else set()
        assert last in known | settings_of(parents[-1]), code


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values with the changes of some sections."""
    return {
        key: merged(value, changes[key])
        if isinstance(value, dict) and isinstance(changes.get(key), dict)
        else changes.get(key, value)
        for key, value in values.items()
    } | {key: value for key, value in changes.items() if key not in values}


@pytest.mark.parametrize("page", PAGES)
def test_yaml_is_a_part_of_params_yaml_or_a_search_space(page: str) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            values = yaml.safe_load(block.text)
            if block.note.startswith("a search space"):
                build_space("page", values, check_params(PARAMS, "params"), page, lambda: ["a", "b"])
            else:
                check_params(merged(PARAMS, values), page)


def test_the_changelog_names_the_keys_that_were_renamed() -> None:
    rows = table(
        "CHANGELOG.md", "Keys of `params.yaml` that were renamed. An old key is refused with the new one named:"
    )
    names = {old.split(",")[0].strip("`"): new.strip("`") for old, (new,) in rows.items()}
    assert {old: new_name(old) for old in names} == names
    assert len(names) == len(_RENAMED)


def test_citation_changelog_and_package_have_one_version_and_one_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert (ROOT / "LICENSE").read_text().startswith(f"{project['license']} License")
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == project["version"]
    (paper,) = citation["references"]
    names = ", ".join(author["family-names"] for author in paper["authors"])
    assert f"{names}, *{paper['title']}*, {paper['collection-title']}" in " ".join(
        (ROOT / "README.md").read_text().split()
    )


# ----------------------------------------------------------------------------------------------------------- Python


def run(text: str, names: dict[str, Any]) -> None:
    """Runs Python without the ``__future__`` of this module."""
    exec(compile(text, "page", "exec", dont_inherit=True), names)


@pytest.fixture
def _own_seed() -> Iterator[None]:
    state, of_python = torch.random.get_rng_state(), random.getstate()
    yield
    torch.random.set_rng_state(state)
    random.setstate(of_python)


@pytest.mark.usefixtures("_own_seed", "project")
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_python_runs_as_it_stands(page: str) -> None:
    """The blocks of a page one after the other. A block that is run elsewhere names the test, which names the page."""
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in python_blocks(page):
        if elsewhere := re.fullmatch(r"run by (tests/[\w/]+\.py)", block.note):
            assert page in (ROOT / elsewhere[1]).read_text(), f"{elsewhere[1]} does not read {page}"
        elif not re.match(r"not run: \w+", block.note):
            run(block.text, names)


def test_the_regulariser_in_the_readme_trains_and_leaves_no_trace() -> None:
    """Its very lines: all parameters have a gradient and moved, the penalty took part, no hook is left."""
    (block,) = (block for block in python_blocks("README.md") if "EquivarianceRegularizer" in block.text)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with_penalty: dict[str, Any] = {}
        run(block.text, with_penalty)
        torch.manual_seed(0)
        without: dict[str, Any] = {}
        run(block.text.replace("0.02 * regularizer", "0.0 * regularizer"), without)
    network = with_penalty["network"]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert with_penalty["loss"].item() > without["loss"].item()
    pairs = zip(network.parameters(), without["network"].parameters(), strict=True)
    assert any(not torch.equal(own, other) for own, other in pairs)


def test_the_folder_of_the_regulariser_works_alone_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the README, where no other module of this project can be imported."""
    shutil.copytree(ROOT / "components/equivariance", tmp_path / "symmetry")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EQREG_FUSED", "0")  # a unit test compiles nothing
    for name in [name for name in sys.modules if name.split(".")[0] in ("components", "pipeline")]:
        monkeypatch.setitem(sys.modules, name, None)
    (block,) = (block for block in python_blocks("README.md") if "EquivarianceRegularizer" in block.text)
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        run(block.text.replace("components.equivariance", "symmetry"), names)
    assert type(names["regularizer"]).__module__.startswith("symmetry.")
    assert set(names["regularizer"].layer_penalties()) <= {"0", "2", "4"}
    assert names["loss"].item() > 0
    for name in [name for name in sys.modules if name.split(".")[0] == "symmetry"]:
        del sys.modules[name]


def test_the_network_of_the_how_to_is_a_network() -> None:
    (block,) = (block for block in python_blocks("docs/how-to/add-a-network.md") if "class Halved" in block.text)
    names: dict[str, Any] = {"__name__": "__page__"}
    run(block.text, names)
    network = names["Halved"](names["Halved"].Settings(features=8))
    assert network(torch.rand(2, 3, 21, 34)).shape == (2, 3, 21, 34)
    with pytest.raises(ValueError, match="features: 3"):
        names["Halved"].Settings(features=3)


# ---------------------------------------------------------------------------------------------------------- results


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def rounded(value: float, digits: int = 2) -> str:
    """Half is rounded away from zero; what is rounded to zero has no sign."""
    text = str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
    return text if float(text) else text.removeprefix("-")


def signed(value: float, digits: int = 2) -> str:
    text = rounded(value, digits)
    return text if text.startswith("-") or not float(text) else f"+{text}"


SCORES = {"derain": "psnr_y", "super_resolution": "psnr_y", "inpaint": "psnr_hole", "classify": "top1"}


@pytest.mark.parametrize(
    ("page", "heading"),
    [("README.md", "## Results"), ("docs/results/tasks.md", "## Every task, two minutes of training")],
)
def test_the_tables_of_tasks_hold_the_rows(page: str, heading: str) -> None:
    written = table(page, heading)
    recorded = rows_of("tasks.jsonl")
    assert len(written) == len(recorded)
    for (title, cells), row in zip(written.items(), recorded, strict=True):
        task = row["task"].split(",")[0]
        assert title.startswith(f"`{task}`")
        found = row[SCORES.get(task, "psnr")]
        digits = 1 if task == "classify" else 2
        mean, low, high = (rounded(value, digits) for value in found["over_classical"])
        if len(cells) == 5:
            assert cells.pop(0) == str(row["train_seconds"])
        firsts = [cell.split()[0] for cell in cells[:3]]
        assert firsts == [rounded(found[key], digits) for key in ("input", "classical", "restored")], title
        gain = signed(float(mean), digits)
        assert cells[3].replace("**", "") == f"{gain} [{low}, {high}]", title


def test_the_table_of_costs_holds_the_rows() -> None:
    titles = {
        "default of params.yaml": "default of `params.yaml`: a fifth of the layers a step, k = B/4, cap",
        "fifth of the layers, k = B/4": "a fifth of the layers, k = B/4",
        "third of the fields, k = B/4": "a third of the fields, k = B/4",
        "channel, k = B/4": "`channel`, k = B/4",
        "projection, no pairs": "`projection`, no pairs",
        "append, k = B": "`append`, k = B, beside a plain step of half the images",
        "evaluation": "evaluation, attached",
    }
    expected: dict[str, list[str]] = {}
    for row in rows_of("overhead.jsonl"):
        expected.setdefault(row["case"], []).append(f"{rounded(row['time'])} / {rounded(row['memory'])}")
    noise: dict[str, list[str]] = {}
    for row in rows_of("overhead_noise.jsonl"):
        noise.setdefault(row["case"], []).append(f"{row['noise']:.2g}")
    written = table("docs/results/cost.md", "# Cost")
    wanted = {titles.get(case, case): [*cells, ", ".join(noise.get(case, []))] for case, cells in expected.items()}
    assert written == wanted


def test_the_table_of_the_cost_on_published_networks_holds_the_rows() -> None:
    expected: dict[str, list[str]] = {}
    for row in rows_of("overhead_published.jsonl"):
        low, high = map(rounded, row["time_quartiles"])
        cells = expected.setdefault(f"`{row['network'].partition(' ')[0]}`", [])
        assert row["case"] == ("default of params.yaml", "all layers, k = B/4")[len(cells)]
        cells.append(f"{rounded(row['time'])} [{low}, {high}] / {rounded(row['memory'])}")
    written = table("docs/results/cost.md", "## Published networks")
    assert written == expected


def test_the_repeated_cost_of_nafnet_is_that_of_its_rows() -> None:
    page = " ".join((ROOT / "docs/results/cost.md").read_text().split())
    for row in rows_of("overhead_nafnet.jsonl"):
        low, high = map(rounded, row["time_quartiles"])
        assert f"{rounded(row['time'])} [{low}, {high}]" in page, row["case"]


def test_the_readme_names_the_range_of_the_defaults_cost() -> None:
    times = [row["time"] for row in rows_of("overhead.jsonl") if row["case"] == "default of params.yaml"]
    assert f"{rounded(min(times))} to {rounded(max(times))} of a plain step's time" in (ROOT / "README.md").read_text()


def test_the_table_of_the_study_holds_its_rows() -> None:
    found = {(row["regime"], row["arm"]): row for row in rows_of("does_it_help/tables.jsonl") if "arm" in row}
    written = table("docs/results/does-it-help.md", "# Does it help?")
    assert len(written) == len({arm for _, arm in found}) - 1  # all but pairs itself
    for title, cells in written.items():
        arm = re.match(r"`(.+?)`", title)
        assert arm
        few, every = (found[regime, arm[1]]["minus_pairs"] for regime in ("4", "all"))
        gains = [f"{signed(of['test']['mean'])} ({rounded(of['test']['seed_deviation'])})" for of in (few, every)]
        others = [f"{signed(of['sigma15']['mean'])} / {signed(of['sigma35']['mean'])}" for of in (few, every)]
        assert [cell.replace("**", "") for cell in cells] == [*gains, *others], title


def test_the_table_of_samples_holds_the_rows() -> None:
    recorded = [row for row in rows_of("data.jsonl") if row["benchmark"] == "data pairs"]
    assert table("docs/results/data.md", "## Training samples") == {
        f"`{row['task']}`": [str(row["pairs_per_second"]), f"{row['trained_per_second']}", rounded(row["ratio"], 0)]
        for row in recorded
    }


def test_the_table_of_published_weights_holds_the_rows() -> None:
    """Of the figures, those that the weights' authors published stand in the page alone."""
    found = table("docs/results/tasks.md", "## Published weights")
    measured = {row["title"]: row for row in rows_of("published.jsonl") if "images" in row}
    assert found.keys() == measured.keys()
    for title, (published, *others) in found.items():
        own = "kair" if title.startswith("DnCNN") else "prenet"
        assert others == [rounded(measured[title][name]["psnr"]) for name in (own, "eqreg", "mprnet", "kair")]
        assert float(published) == pytest.approx(measured[title][own]["psnr"], abs=0.01)


def measured_exports() -> list[dict[str, Any]]:
    return [row for row in rows_of("export.jsonl") if "refused" not in row]


def test_the_table_of_exports_holds_the_rows() -> None:
    assert table("docs/results/exports.md", "# Exports") == {
        f"{row['network']}: `{row['format']}`": [
            f"{row['largest_difference']:.1e} of {row['largest_output']}",
            f"{row['equivariance_error']:.6f} / {row['equivariance_error_of_model']:.6f}",
            str(row["least_side"]),
            rounded(row["bytes"] / 1e6),
        ]
        for row in measured_exports()
    }


def test_the_table_of_repeated_runs_holds_the_rows() -> None:
    assert table("docs/results/tasks.md", "Rows: `benchmarks/results/repeat.jsonl`, one run each.") == {
        row["run"]: [row["model"], rounded(row["validation"]), rounded(row["test"])] for row in rows_of("repeat.jsonl")
    }


def test_the_table_of_ct_holds_the_rows() -> None:
    """``own_network`` is what `eqreg restore` does; ``artifact`` is the slice that it is given."""
    columns = ("artifact", "li", "own_li", "network", "own_network")
    recorded = rows_of("ct_restore.jsonl")
    expected = {}
    for mean in (row for row in recorded if row["figure"] == "mean"):
        of_size = [row for row in recorded if row["figure"] == "slice" and row["size"] == mean["size"]]
        worse = sum(row["own_network"] > row["artifact"] for row in of_size)
        assert len(of_size) == mean["slices"]
        expected[str(mean["size"])] = [*(rounded(mean[key], 1) for key in columns), f"{worse} of {len(of_size)}"]
    assert table("docs/how-to/ct.md", "## How much is lost") == expected


def figures() -> Iterator[tuple[str, str]]:
    """(page, what its text says) for figures that stand in no table."""
    crops, memory, preprocess = (
        next(row for row in rows_of("data.jsonl") if row["benchmark"] == f"data {name}")
        for name in ("crops", "memory", "preprocess")
    )
    data = "docs/results/data.md"
    yield data, f"{crops['ratio']} times as fast as by decoding"
    yield data, f"{crops['ratio_to_webdataset']} times as fast as webdataset"
    yield data, f"takes {rounded(memory['ratio'])} of the process's own memory ({memory['large_mb']:.0f} MB)"
    yield data, f"were preprocessed in {preprocess['seconds']['preprocess']:.0f} s"
    cases = ("asks twice for each", "same configuration", *3 * ("one pass of SHA-256",))
    for row, case in zip(rows_of("fetch.jsonl"), cases, strict=True):
        ratio, bound = rounded(row["speed_ratio"]), row.get("bound", "")
        yield data, f"{case} | {f'**{ratio}**' if bound and row['speed_ratio'] < bound else ratio} | {bound}".strip()
    ratios = [row["ratio"] for row in rows_of("data.jsonl") if "trained_per_second" in row]
    yield data, f"{min(ratios):.0f} to {max(ratios):.0f} times as fast as the default step"
    seconds = {row.get("size"): row["value"] for row in rows_of("ct_artifacts.jsonl") if "seconds" in row["figure"]}
    yield data, f"a slice takes {rounded(seconds[416], 1)} s on two cores"

    shares = [row["largest_difference"] / max(1, row["largest_output"]) for row in measured_exports()]
    yield "docs/results/exports.md", f"At most the difference is {max(shares):.0e} of the largest output"

    clusters = "docs/results/clusters.md"
    runs = [row for row in rows_of("kills.jsonl") if "case" in row]
    assert all(run["weights_identical"] and run["history_identical"] for run in runs)
    assert len(runs) == 12
    yield clusters, f"{sum(len(run['kills']) for run in runs)} kills"
    yield clusters, f"At most {max(run['most_steps_again'] for run in runs)} steps were done again"
    (trial,) = rows_of("sweep_overhead.jsonl")
    yield clusters, f"a trial after the first takes {rounded(trial['around'], 1)} s"
    yield clusters, f"the beginning of the next it takes {rounded(trial['between'], 1)} s"
    yield clusters, f"pays {rounded(trial['first_around'], 1)} s for the start"
    strong, weak, small_network, wide = rows_of("scaling.jsonl")
    for row in (strong, weak):
        low, high = map(rounded, row["efficiency_range"])
        yield clusters, f"{rounded(row['efficiency'])} [{low}, {high}]"
    for title, row in (("the default small network", small_network), ("a width of 96 at 128 pixels", wide)):
        cells = [rounded(row["gpus"][gpus]["efficiency_nothing_hidden"]) for gpus in ("8", "64", "512")]
        yield clusters, f"| {title} | {' | '.join(cells)} |"

    for row in rows_of("restore.jsonl"):
        low, high = map(rounded, row["range"])
        yield "docs/results/cost.md", f"| {rounded(row['cpu_seconds'])} [{low}, {high}] |"
    penalty, control, difference = rows_of("control.jsonl")
    hidden, output = ([rounded(row[key], digits) for row in (penalty, control)] for key, digits in RESIDUALS)
    gain = difference["test_psnr_penalty_minus_control"]
    yield (
        "docs/results/tasks.md",
        f"hidden layers {hidden[0]} against {hidden[1]}; output {output[0]} against {output[1]}; "
        f"PSNR {signed(gain['mean'])} dB [{rounded(gain['low'])}, {rounded(gain['high'])}]",
    )
    (rain,) = rows_of("rain100l.jsonl")
    gain = rain["gain_psnr_y"]
    yield (
        "docs/results/tasks.md",
        f"{rounded(rain['input_psnr_y'])} -> {rounded(rain['restored_psnr_y'])} dB PSNR of Y, {signed(gain['mean'])} "
        f"[{rounded(gain['low'])}, {rounded(gain['high'])}]; {rain['pairs_worse']} of {rain['pairs']} lose",
    )
    for row in rows_of("first_sweep.jsonl"):
        if row["penalty"] == "regular":
            yield (
                "docs/results/does-it-help.md",
                f"| {row['weight']:g} | {rounded(row['score'])} | {rounded(row['layers'])} |",
            )


RESIDUALS = (("hidden_residual", 2), ("output_residual", 4))


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/results/")])
def test_the_figures_in_the_text_are_those_of_the_rows(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    said = [figure for of_page, figure in figures() if of_page == page]
    assert said
    assert [figure for figure in said if figure not in text] == []
