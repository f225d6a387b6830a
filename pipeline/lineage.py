"""What made a result: the code, the data and the parameters, and one id for the three."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.params import Params
from pipeline.paths import PACKED, copied_from

# "Dirty" means that one of these differs from the commit.
CODE = (
    "components",
    "pipeline",
    "tune_spaces",
    "params.yaml",
    "dvc.yaml",
    "pyproject.toml",
    "constraints.txt",
)


NONE, UNKNOWN = "none", "unknown"
"""In place of a commit: outside git and before the first commit; where it cannot be known."""


@dataclass(frozen=True)
class Lineage:
    """What made a result.

    Attributes:
        commit: of git; "none" outside git, "unknown" where git does not read it, and of a result from elsewhere.
        difference: hash of how code and params differ from the commit; "" if they do not. Without a commit, of code and
            params themselves.
        data: hash of the packed data.
        params: hash of the params.
        id: 12 hexadecimal digits of all of these.
    """

    commit: str
    difference: str
    data: str
    params: str

    @property
    def dirty(self) -> bool | None:
        """Whether code or params differed from the commit; None where there is none, or it is not known."""
        return None if self.commit in (NONE, UNKNOWN) else bool(self.difference)

    @property
    def id(self) -> str:
        text = "\n".join((self.commit, self.difference, self.data, self.params))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def tags(self) -> dict[str, str]:
        """For MLflow: on every run, trial and model version."""
        return {
            "eqreg.lineage": self.id,
            "eqreg.git_commit": self.commit,
            "eqreg.git_dirty": UNKNOWN if self.dirty is None else str(self.dirty).lower(),
            "eqreg.data_hash": self.data,
            "eqreg.params_hash": self.params,
        }


def trace(params: Params) -> Lineage:
    """The lineage of what would be made now, from this folder."""
    commit, difference = code_state()
    return Lineage(commit, difference, data_hash(), params.hash)


def code_state() -> tuple[str, str]:
    """The commit, and 12 hexadecimal digits of how code and params differ from it ("" if they do not).

    Without a commit, or where git does not read it, the digits are of code and params themselves. Where the code came
    without its repository, as a submitted job or an image, ``EQREG_CODE`` says it: COMMIT or COMMIT+DIFFERENCE.
    """
    if told := os.environ.get("EQREG_CODE"):
        commit, _, difference = told.partition("+")
        return commit, difference
    try:
        if not (commit := _commit()):
            return NONE, _code_hash()
        changes = _git("diff", "--binary", "HEAD", "--", *CODE) + b"".join(
            name + Path(os.fsdecode(name)).read_bytes()
            for name in _names("--others", "--exclude-standard", "--", *CODE)
            if Path(os.fsdecode(name)).is_file()
        )
    except NoRepositoryError:
        return NONE, _code_hash()
    except GitError:
        return UNKNOWN, _code_hash()
    return commit, hashlib.sha256(changes).hexdigest()[:12] if changes else ""


def _commit() -> str:
    """The commit; "" before the first."""
    return _git("rev-parse", "--verify", "--quiet", "HEAD").decode().strip()


def _code_hash() -> str:
    files = [file for name in CODE for file in (Path(name), *Path(name).rglob("*"))]
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(os.fsencode(file) + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def project_files() -> list[str]:
    """The files that git tracks here, and those that are new among the code; none where git does not say."""
    try:
        names = {*_names(), *_names("--others", "--exclude-standard", "--", *CODE)}
    except GitError:
        return []
    return sorted(map(os.fsdecode, names))


def _names(*arguments: str) -> list[bytes]:
    """What ``git ls-files`` lists. -z: names as they are, not quoted."""
    return [name for name in _git("ls-files", "-z", *arguments).split(b"\0") if name]


def data_hash(packed: Path = PACKED) -> str:
    """12 hexadecimal digits of the packs' indexes, which hold the SHA-256 of all pixels."""
    digest = hashlib.sha256()
    for index in sorted(packed.rglob("index.json")):
        digest.update(index.relative_to(packed).as_posix().encode() + index.read_bytes())
    return digest.hexdigest()[:12]


def committed_text(path: Path) -> str | None:
    """The file as the last commit has it; None outside git or where the commit has no such file.

    A submitted job brings it in the folder ``EQREG_COMMITTED``.
    """
    if folder := os.environ.get("EQREG_COMMITTED"):
        copy = Path(folder) / path
        return copy.read_text() if copy.is_file() else None
    try:
        if not _commit() or not _git("ls-tree", "-z", "HEAD", "--", path.as_posix()):
            return None
        return _git("show", f"HEAD:./{path.as_posix()}").decode() or None
    except GitError:
        return None


def main_checkout(folder: Path) -> Path:
    """The checkout that a folder belongs to, seen from a git worktree or from a copy that DVC makes for experiments."""
    folder = copied_from(folder) or folder.resolve()  # DVC may have copied a worktree
    try:
        common = _git("-C", str(folder), "rev-parse", "--path-format=absolute", "--git-common-dir").decode().strip()
        # A checkout that is a subfolder of a larger repository keeps its own place.
        top = _git("-C", str(folder), "rev-parse", "--show-toplevel").decode().strip()
    except GitError:
        return folder
    if common and top and Path(common).name == ".git" and Path(common).parent != Path(top):
        return Path(common).parent / folder.relative_to(top)
    return folder


class GitError(Exception):
    """Git is missing, or does not read the repository; the user has been told."""


class NoRepositoryError(GitError):
    """There is no repository, and nothing to tell."""


def _git(*arguments: str) -> bytes:
    """What git prints; nothing where it ends without a word, as ``rev-parse --quiet`` of what is not there.

    Raises:
        NoRepositoryError: there is no repository.
        GitError: git is missing, or does not read the repository, which is said once, with the remedy.
    """
    try:
        # In English: what it says decides.
        done = subprocess.run(["git", *arguments], capture_output=True, env=os.environ | {"LANGUAGE": "C"})
    except OSError as error:
        folder = Path.cwd()
        if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
            raise NoRepositoryError from None
        _warn_once(f"git: {error.strerror}", "install git")
        raise GitError from error
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode == 0 or (done.returncode == 1 and not said):
        return done.stdout
    lines = [line.strip() for line in said.splitlines()] or [f"it ended with {done.returncode}"]
    if lines[0].startswith("fatal: not a git repository (or any"):
        raise NoRepositoryError
    # Of a folder of another user, git names its remedy in a line of its own.
    remedy = next((line for line in lines if line.startswith("git config ")), "mend what 'git status' says")
    reason = next((line for line in lines if line.startswith("fatal: ")), lines[0])
    _warn_once(reason.removeprefix("fatal: "), remedy)
    raise GitError


@cache
def _warn_once(reason: str, remedy: str) -> None:
    """On stderr: the output of ``eqreg params`` is for programs, too."""
    print(
        f"warning: git does not read this repository ({reason}): results are tagged with an unknown commit\n"
        f"to have them tagged with theirs: {remedy}",
        file=sys.stderr,
    )
