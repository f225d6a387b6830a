"""``make`` and the ``.venv`` it makes, with small shell scripts in place of Python, venv and pip: they write down how
they were called, and nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[1]
TOOLS = ("make", "awk", "cat", "chmod", "cksum", "cp", "dirname", "echo", "find", "grep", "ls", "mkdir", "rm", "sed")

PYTHON = """\
#!/bin/sh
# {version} {kind}
[ "$1" = -c ] || echo "$0 $*" >> '{log}'
library=.venv/lib/python{minor}/site-packages
case "{kind} $1 $2" in
  "shim "*) echo "command not found" >&2; exit 127 ;;
  "bare -c "*) printf '%s ' {version}; exit 1 ;;
  *" -c "*) echo "{version} {path}" ;;
  *" -m venv")
    mkdir -p .venv/bin $library/pip-1.dist-info
    [ ! -e venv_is_killed_early ] || kill -9 $PPID $$
    printf 'version = {version}\\ncommand = %s -m venv %s/.venv\\n' "$0" "$PWD" > .venv/pyvenv.cfg
    cp '{path}' .venv/bin/python
    cp '{path}' .venv/bin/python3
    [ ! -e venv_is_killed ] || kill -9 $PPID $$
    echo pip > $library/pip-1.dist-info/INSTALLER
    ;;
  *" -m pip")
    [ ! -e pip_fails ] || exit 1
    mkdir -p $library/ray-1.dist-info
    [ ! -e pip_is_killed ] || kill -9 $PPID $$
    echo pip > $library/ray-1.dist-info/INSTALLER
    for program in dvc eqreg; do
      printf '#!/bin/sh\\necho "%s $*" >> "%s"\\n' $program '{log}' > .venv/bin/$program
      chmod +x .venv/bin/$program
    done
    ;;
esac
"""


@dataclass
class Checkout:
    """A copy of what ``make`` reads, and a PATH with ``python*`` of its own."""

    folder: Path
    programs: Path
    log: Path
    variables: dict[str, str] = field(default_factory=dict)

    def add_python(self, name: str, version: str, kind: str = "whole") -> Path:
        """Args:
        kind: ``whole``, ``bare`` (without ensurepip) or ``shim`` (does not run).
        """
        path = self.programs / name
        minor = version.rpartition(".")[0]
        path.write_text(PYTHON.format(version=version, minor=minor, kind=kind, log=self.log, path=path))
        path.chmod(0o755)
        return path

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.programs), **self.variables}
        command = [str(self.programs / "make"), *(arguments or (".venv/.installed",))]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)

    def calls(self) -> list[str]:
        """What was called since this was last asked, but for ``-c``, which asks for a Python's version."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.replace(f"{self.programs}/", "") for line in lines]

    def made(self) -> list[str]:
        """Which Pythons made a .venv since the calls were last asked for."""
        return [call.removesuffix(" -m venv .venv") for call in self.calls() if " -m venv" in call]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    checkout = Checkout(tmp_path / "check out", tmp_path / "programs", tmp_path / "log")
    (checkout.folder / ".ci").mkdir(parents=True)
    checkout.programs.mkdir()
    for name in ("Makefile", ".ci/venv.sh"):
        shutil.copy(ROOT / name, checkout.folder / name)
    (checkout.folder / "pyproject.toml").write_text("[project]\n")
    (checkout.folder / "constraints.txt").write_text("ray==1\n")
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (checkout.programs / tool).symlink_to(found)
    return checkout


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    """With a .venv of Python 3.12, and 3.11 on the PATH beside it."""
    checkout.add_python("python3.12", "3.12.4")
    checkout.add_python("python3.11", "3.11.9")
    assert checkout.make().returncode == 0
    checkout.calls()
    return checkout


def test_make_alone_lists_the_targets_and_installs_nothing(checkout: Checkout) -> None:
    listed = checkout.make("-s").stdout
    assert [line.split()[:2] for line in checkout.make("help").stdout.splitlines()] == [
        ["make", target] for target in ("help", "run", "test", "test-fast", "lint", "docs", "ui")
    ]
    assert "make run" in listed
    assert checkout.calls() == []


def test_run_ends_with_how_to_go_on_and_its_commands_find_the_python_of_the_venv(installed: Checkout) -> None:
    for program in ("dvc", "eqreg"):
        path = installed.folder / ".venv/bin" / program
        path.write_text(f'#!/bin/sh\ncommand -v python >> "{installed.log}"\n')
    result = installed.make("run")
    assert installed.calls() == [f"{installed.folder}/.venv/bin/python"] * 2
    assert result.stdout.splitlines()[-1].startswith("go on      . .venv/bin/activate, then dvc and eqreg are commands")


@pytest.mark.parametrize("name", ["Größe 形", "a'b", "a#b", "a?b", "a&b;c", "$HOME", "a\\b"])
def test_a_checkout_may_have_any_letters_in_its_path(checkout: Checkout, name: str) -> None:
    checkout.folder = checkout.folder.rename(checkout.folder.with_name(name))
    checkout.add_python("python3", "3.12.4")
    for _ in range(2):
        assert checkout.make("run").returncode == 0
    assert checkout.calls()[2:] == ["dvc repro", "eqreg summary"] * 2


def test_a_percent_sign_in_the_path_is_refused_before_anything_is_installed(checkout: Checkout) -> None:
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("50%"))
    checkout.add_python("python3", "3.12.4")
    result = checkout.make("run")
    assert (result.returncode, checkout.calls()) == (2, [])
    assert result.stderr.startswith("The path of this folder has a '%', below which MLflow cannot make its database:")


def test_run_installs_then_runs_the_stages_then_the_summary(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.12.4")
    assert checkout.make("run").returncode == 0
    assert checkout.calls() == [
        "python3 -m venv .venv",
        ".venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .",
        "dvc repro",
        "eqreg summary",
    ]
    assert checkout.make("run").returncode == 0
    assert checkout.calls() == ["dvc repro", "eqreg summary"]


def test_the_test_tools_are_installed_once_and_are_enough_to_run(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.12.4")
    assert checkout.make("test", "PYTEST_ARGS=-k name").returncode == 0
    assert checkout.calls() == [
        "python3 -m venv .venv",
        ".venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .[test]",
        ".venv/bin/python -m pytest -m not slow -n 2 -k name",
    ]
    assert checkout.make("test-fast").returncode == 0
    assert checkout.calls() == [".venv/bin/python -m pytest -m unit -n auto"]
    assert checkout.make("run").returncode == 0
    assert checkout.calls() == ["dvc repro", "eqreg summary"]


@pytest.mark.parametrize("minor", range(9, 17))
def test_python3_is_taken_where_the_project_allows_its_version(checkout: Checkout, minor: int) -> None:
    checkout.add_python("python3", f"3.{minor}.2")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    may = f"3.{minor}.2" in SpecifierSet(project["requires-python"])
    assert checkout.make().returncode == (0 if may else 2)
    assert checkout.made() == (["python3"] if may else [])


@pytest.mark.parametrize(
    ("version", "kind"), [("3.14.0", "whole"), ("3.10.13", "whole"), ("3.12.1", "shim"), ("3.12.1", "bare")]
)
def test_a_python3_that_cannot_be_used_is_passed_over_for_the_newest_that_can(
    checkout: Checkout, version: str, kind: str
) -> None:
    checkout.add_python("python3", version, kind)
    checkout.add_python("python3.13", "3.13.0", "shim")
    checkout.add_python("python3.12", "3.12.1")
    checkout.add_python("python3.11", "3.11.9")
    assert checkout.make().returncode == 0
    assert checkout.made() == ["python3.12"]


def test_without_a_python_that_can_be_used_it_is_said_what_is_needed_and_what_each_lacks(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.14.0")
    checkout.add_python("python3.13", "3.13.0", "shim")
    checkout.add_python("python3.11", "3.11.2", "bare")
    result = checkout.make("run")
    assert result.returncode == 2
    assert result.stdout == ""
    needed, remedy, makes_own = result.stderr.splitlines()
    assert needed == (
        "eqreg needs Python 3.11, 3.12 or 3.13 with venv and ensurepip, but python3 is 3.14.0; "
        "python3.13 does not run; python3.11 has no ensurepip (Debian, Ubuntu: apt install python3.11-venv)."
    )
    assert "PYTHON=" in remedy
    assert makes_own.startswith("make: ***")
    assert checkout.calls() == []
    assert not (checkout.folder / ".venv").exists()


def test_without_any_python_it_is_said_what_is_needed(checkout: Checkout) -> None:
    result = checkout.make("run")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == "eqreg needs Python 3.11, 3.12 or 3.13 with venv and ensurepip."


def test_the_python_that_is_asked_for_is_taken(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.12.4")
    checkout.add_python("mine", "3.13.1")
    assert checkout.make("run", "PYTHON=mine").returncode == 0
    assert checkout.made() == ["mine"]


@pytest.mark.parametrize(
    ("version", "kind", "says"),
    [
        ("3.14.0", "whole", "PYTHON=mine is 3.14.0;"),
        ("3.12.1", "shim", "PYTHON=mine does not run;"),
        ("3.12.1", "bare", "PYTHON=mine has no ensurepip (Debian, Ubuntu: apt install python3.12-venv);"),
    ],
)
def test_a_python_that_is_asked_for_and_cannot_be_used_is_refused_and_the_venv_stays(
    installed: Checkout, version: str, kind: str, says: str
) -> None:
    installed.add_python("mine", version, kind)
    result = installed.make("run", "PYTHON=mine")
    assert result.returncode == 2
    assert result.stderr.startswith(says)
    assert installed.calls() == []
    assert installed.make("run").returncode == 0
    assert installed.calls() == ["dvc repro", "eqreg summary"]


def test_a_venv_of_another_python_than_asked_for_is_made_anew_and_back_again(installed: Checkout) -> None:
    left = installed.folder / ".venv/bin/of_the_old_one"
    left.touch()
    for name in ("python3.11", "python3.12"):
        assert installed.make("run", f"PYTHON={name}").returncode == 0
        assert installed.made() == [name]
        assert not left.exists()
        assert installed.make("run", f"PYTHON={name}").returncode == 0
        assert installed.calls() == ["dvc repro", "eqreg summary"]


def test_a_venv_that_is_whole_is_kept_whatever_python3_is(installed: Checkout) -> None:
    installed.add_python("python3", "3.11.9")
    (installed.programs / "python3.12").unlink()
    (installed.folder / "constraints.txt").touch()
    assert installed.make("run").returncode == 0
    assert installed.calls() == ["dvc repro", "eqreg summary"]


def test_a_venv_whose_python_is_no_longer_supported_or_was_replaced_is_made_anew(installed: Checkout) -> None:
    for version in ("3.10.1", "3.13.0"):
        fake = installed.add_python("other", version)
        shutil.copy(fake, installed.folder / ".venv/bin/python")
        assert installed.make().returncode == 0
        assert installed.made() == ["python3.12"]


def test_a_venv_whose_python_is_gone_is_made_anew(installed: Checkout) -> None:
    (installed.folder / ".venv/bin/python").unlink()
    assert installed.make().returncode == 0
    assert installed.made() == ["python3.12"]


def test_a_checkout_that_was_renamed_or_copied_gets_a_venv_of_its_own(installed: Checkout) -> None:
    first = installed.folder
    installed.folder = first.with_name("copy")
    shutil.copytree(first, installed.folder)
    assert installed.make().returncode == 0
    assert installed.made() == ["python3.12"]
    installed.folder = installed.folder.rename(first.with_name("renamed"))
    assert installed.make().returncode == 0
    assert installed.made() == ["python3.12"]
    assert installed.make().returncode == 0
    assert installed.calls() == []


def test_a_checkout_that_is_reached_through_a_link_keeps_its_venv(installed: Checkout) -> None:
    link = installed.folder.with_name("link")
    link.symlink_to(installed.folder)
    settings = installed.folder / ".venv/pyvenv.cfg"
    for name in (installed.folder, link):
        settings.write_text(f"version = 3.12.4\ncommand = python3 -m venv --prompt eqreg {name}/.venv\n")
        for folder in (installed.folder, link):
            installed.folder = folder
            assert installed.make().returncode == 0
            assert installed.calls() == []


@pytest.mark.parametrize("when", ["venv_is_killed_early", "venv_is_killed"])
def test_a_venv_whose_making_was_killed_is_made_anew(checkout: Checkout, when: str) -> None:
    checkout.add_python("python3", "3.12.4")
    killed = checkout.folder / when
    killed.touch()
    assert checkout.make().returncode == 2
    assert checkout.calls() == ["python3 -m venv .venv"]
    killed.unlink()
    assert checkout.make().returncode == 0
    assert checkout.made() == ["python3"]


def test_a_venv_that_pip_was_killed_in_is_made_anew(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.12.4")
    killed = checkout.folder / "pip_is_killed"
    killed.touch()
    assert checkout.make().returncode == 2
    killed.unlink()
    checkout.calls()
    assert checkout.make().returncode == 0
    assert [call.split()[2] for call in checkout.calls()] == ["venv", "pip"]
    assert checkout.make().returncode == 0
    assert checkout.calls() == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_what_is_installed_follows_the_files_that_name_it_and_pip_is_tried_until_it_succeeds(
    installed: Checkout, name: str
) -> None:
    pip = ".venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ."
    file, fails = installed.folder / name, installed.folder / "pip_fails"
    before = file.read_text()
    file.write_text(f"{before}# changed\n")
    fails.touch()
    for _ in range(2):
        assert installed.make("run").returncode == 2
        assert installed.calls() == [pip]
    file.write_text(before)  # what pip did meanwhile is not known
    assert installed.make("run").returncode == 2
    assert installed.calls() == [pip]
    fails.unlink()
    assert installed.make("run").returncode == 0
    assert installed.calls() == [pip, "dvc repro", "eqreg summary"]


def test_where_only_the_test_tools_cannot_be_installed_the_stages_run(installed: Checkout) -> None:
    (installed.folder / "pip_fails").touch()
    assert installed.make("test").returncode == 2
    installed.calls()
    assert installed.make("run").returncode == 0
    assert installed.calls() == ["dvc repro", "eqreg summary"]
    assert installed.make("test").returncode == 2
    assert [call.split()[2] for call in installed.calls()] == ["pip"]


@pytest.mark.parametrize("what", ["folder", "file", "link", "dangling link", "uv", "virtualenv"])
def test_a_venv_that_make_has_not_made_is_left_as_it_is(checkout: Checkout, what: str) -> None:
    checkout.add_python("python3", "3.12.4")
    venv, content = checkout.folder / ".venv", "of somebody"
    file = venv / "notes"
    if what == "file":
        venv.write_text(content)
        file = venv
    elif "link" in what:
        target = checkout.folder.with_name("elsewhere")
        venv.symlink_to(target)
        file = target.with_name("beside") if "dangling" in what else file
        if what == "link":
            target.mkdir()
        file.write_text(content)
    else:
        venv.mkdir()
        file.write_text(content)
        if what != "folder":
            (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\n{what} = 20.1\n")
    result = checkout.make("run", "PYTHON=python3")
    assert result.returncode == 2
    assert result.stderr.startswith(".venv is no virtual environment that make has made: move it away")
    assert checkout.calls() == []
    assert file.read_text() == content


def test_an_empty_folder_is_used(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.12.4")
    (checkout.folder / ".venv").mkdir()
    assert checkout.make().returncode == 0
    assert checkout.made() == ["python3"]


@pytest.mark.parametrize("arguments", [[], ["PYTHON=python3"], ["PYTHON=.venv/bin/python"]])
def test_an_activated_venv_that_is_made_anew_is_made_by_the_python_behind_it(
    installed: Checkout, arguments: list[str]
) -> None:
    installed.variables["PATH"] = f"{installed.folder}/.venv/bin{os.pathsep}{installed.programs}"
    (installed.folder / ".venv/lib/python3.12/site-packages/pip-1.dist-info/INSTALLER").unlink()
    assert installed.make(".venv/.installed", *arguments).returncode == 0
    assert installed.made() == ["python3.12"]


def test_a_real_python_answers_what_it_is_asked(checkout: Checkout) -> None:
    (checkout.folder / ".venv").write_text("ends make after the question")
    result = checkout.make("run", f"PYTHON={sys.executable}")
    assert result.stderr.startswith(".venv is no virtual environment")
    lacks = checkout.folder / "lacks"
    lacks.mkdir()
    (lacks / "ensurepip.py").write_text("raise ImportError\n")
    checkout.variables["PYTHONPATH"] = str(lacks)
    result = checkout.make("run", f"PYTHON={sys.executable}")
    assert result.stderr.startswith(f"PYTHON={sys.executable} has no ensurepip")


def test_a_real_virtual_environment_has_the_python_behind_it_make_the_new_one(checkout: Checkout) -> None:
    modules = checkout.folder / "modules"
    modules.mkdir()
    (modules / "venv.py").write_text("import sys\nif __name__ == '__main__': sys.exit(sys.prefix)\n")
    checkout.variables["PYTHONPATH"] = str(modules)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "other"], cwd=checkout.folder, check=True)
    result = checkout.make("run", "PYTHON=other/bin/python")
    assert result.returncode == 2
    assert sys.base_prefix in result.stderr.splitlines()


def test_a_real_venv_is_kept_until_it_is_moved(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.12.4")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=checkout.folder, check=True)
    (library,) = checkout.folder.glob(".venv/lib/python*/site-packages")
    for folder in ("pip", "pip-1.dist-info"):
        (library / folder).mkdir()
    (library / "pip/__main__.py").touch()
    (library / "pip-1.dist-info/INSTALLER").touch()
    for _ in range(2):
        assert checkout.make().returncode == 0
    assert checkout.calls() == []
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    result = checkout.make()
    assert result.returncode == 0
    assert "it was made in another folder" in result.stderr
    assert checkout.made() == ["python3"]
