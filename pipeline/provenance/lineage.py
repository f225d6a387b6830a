"""The lineage of a result: code, data and params, with one id for all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from components.brief import short_digest
from pipeline.paths import PACKED, copied_from

# The code is "dirty" if one of these differs from the commit.
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
"""Values in place of a commit.

``NONE`` stands for a folder outside git or without a commit, ``UNKNOWN`` for a commit that cannot be determined.
"""


@dataclass(frozen=True)
class Lineage:
    """The code, data and params of a result.

    Attributes:
        commit: git commit; "none" outside git and before the first commit, "unknown" if git does not read the
            repository or the result comes from elsewhere.
        difference: hash of the difference of code and params to the commit; "" if there is none. Without a commit, hash
            of code and params themselves.
        data: hash of the packed data.
        params: hash of the params.
    """

    commit: str
    difference: str
    data: str
    params: str

    @property
    def dirty(self) -> bool | None:
        """Whether code or params differed from the commit; None if there is no commit or it is unknown."""
        return None if self.commit in (NONE, UNKNOWN) else bool(self.difference)

    @property
    def id(self) -> str:
        """A hash of all four attributes, 12 hexadecimal digits."""
        text = "\n".join((self.commit, self.difference, self.data, self.params))
        return short_digest(text)

    def tags(self) -> dict[str, str]:
        """Returns the MLflow tags for every run, trial and model version."""
        return {
            "eqreg.lineage": self.id,
            "eqreg.git_commit": self.commit,
            "eqreg.git_dirty": UNKNOWN if self.dirty is None else str(self.dirty).lower(),
            "eqreg.data_hash": self.data,
            "eqreg.params_hash": self.params,
        }


def trace(params_hash: str) -> Lineage:
    """Returns the lineage of a result that is created now in this folder; ``params_hash`` is ``Params.hash``."""
    commit, difference = code_state()
    return Lineage(commit, difference, data_hash(), params_hash)


def code_state() -> tuple[str, str]:
    """Returns the commit, and a hash of the difference of code and params to it.

    The hash has 12 hexadecimal digits and is "" if there is no difference. Without a commit, or if git does not read
    the repository, it is a hash of code and params themselves. If the code was brought without its repository, as in a
    submitted job or an image, the environment variable ``EQREG_CODE`` holds COMMIT or COMMIT+DIFFERENCE.
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
    return commit, short_digest(changes) if changes else ""


def _commit() -> str:
    """Returns the commit; "" before the first commit."""
    return _git("rev-parse", "--verify", "--quiet", "HEAD").decode().strip()


def _code_hash() -> str:
    files = [file for name in CODE for file in (Path(name), *Path(name).rglob("*"))]
    found = [file for file in sorted(files) if file.is_file() and "__pycache__" not in file.parts]
    return short_digest(b"".join(os.fsencode(file) + b"\0" + file.read_bytes() for file in found))


def project_files() -> list[str]:
    """Returns the files that git tracks and new files of the code; none if git is missing or cannot read the files."""
    try:
        names = {*_names(), *_names("--others", "--exclude-standard", "--", *CODE)}
    except GitError:
        return []
    return sorted(map(os.fsdecode, names))


def _names(*arguments: str) -> list[bytes]:
    """Returns the names that ``git ls-files`` lists; with -z they are not quoted."""
    return [name for name in _git("ls-files", "-z", *arguments).split(b"\0") if name]


def data_hash(packed: Path = PACKED) -> str:
    """Returns a hash of the indexes of the packs, 12 hexadecimal digits; an index has the SHA-256 of all pixels."""
    indexes = sorted(packed.rglob("index.json"))
    return short_digest(b"".join(path.relative_to(packed).as_posix().encode() + path.read_bytes() for path in indexes))


def committed_text(path: Path) -> str | None:
    """Returns the text of a file in the last commit; None outside git or if the commit has no such file.

    In a submitted job the committed files are in the folder ``EQREG_COMMITTED``.
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
    """Returns the main checkout of a folder, which may be in a git worktree or in a copy by DVC for an experiment."""
    folder = copied_from(folder) or folder.resolve()  # DVC may have copied a worktree
    try:
        common = _git("-C", str(folder), "rev-parse", "--path-format=absolute", "--git-common-dir").decode().strip()
        # The project may be a subfolder of a larger repository; its path relative to the top is kept.
        top = _git("-C", str(folder), "rev-parse", "--show-toplevel").decode().strip()
    except GitError:
        return folder
    if common and top and Path(common).name == ".git" and Path(common).parent != Path(top):
        return Path(common).parent / folder.relative_to(top)
    return folder


class GitError(Exception):
    """Git is missing or does not read the repository; a warning has been printed."""


class NoRepositoryError(GitError):
    """There is no repository; nothing is printed."""


def _git(*arguments: str) -> bytes:
    """Runs git and returns its output.

    The output is empty if git exits with 1 and without an error message, as ``rev-parse --quiet`` does for a missing
    revision.

    Raises:
        NoRepositoryError: there is no repository.
        GitError: git is missing or does not read the repository; a warning with a hint is printed once.
    """
    try:
        # The messages must be in English, because the code below reads them.
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
    # For a folder that belongs to another user, git prints a hint on its own line.
    hint = next((line for line in lines if line.startswith("git config ")), "mend what 'git status' says")
    reason = next((line for line in lines if line.startswith("fatal: ")), lines[0])
    _warn_once(reason.removeprefix("fatal: "), hint)
    raise GitError


@cache
def _warn_once(reason: str, hint: str) -> None:
    """Prints a warning once, to stderr, because programs may read the standard output of ``eqreg params``."""
    print(
        f"warning: git does not read this repository ({reason}): results are tagged with an unknown commit\n"
        f"to have them tagged with theirs: {hint}",
        file=sys.stderr,
    )
