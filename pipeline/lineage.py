"""What made a result: the code, the data and the parameters, and one id for the three."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
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


UNKNOWN = "unknown"


@dataclass(frozen=True)
class Lineage:
    """What made a result.

    Attributes:
        commit: of git; "none" outside git, "unknown" of a result that came from elsewhere.
        difference: hash of how code and params differ from the commit; "" if they do not.
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
        """Whether code or params differed from the commit; None where the commit is not known."""
        return None if self.commit == UNKNOWN else bool(self.difference)

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

    Where the code came without its repository, as a submitted job or an image, ``EQREG_CODE`` says it: COMMIT or
    COMMIT+DIFFERENCE.
    """
    if told := os.environ.get("EQREG_CODE"):
        commit, _, difference = told.partition("+")
        return commit, difference
    commit = _git("rev-parse", "HEAD").decode().strip() or "none"
    changes = _git("diff", "--binary", "HEAD", "--", *CODE) + b"".join(
        name + Path(os.fsdecode(name)).read_bytes()
        for name in _names("--others", "--exclude-standard", "--", *CODE)
        if Path(os.fsdecode(name)).is_file()
    )
    return commit, hashlib.sha256(changes).hexdigest()[:12] if changes else ""


def project_files() -> list[str]:
    """The files that git tracks here, and those that are new among the code; none outside git."""
    return sorted({os.fsdecode(name) for name in (*_names(), *_names("--others", "--exclude-standard", "--", *CODE))})


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
    return _git("show", f"HEAD:./{path.as_posix()}").decode() or None


def main_checkout(folder: Path) -> Path:
    """The checkout that a folder belongs to, seen from a git worktree or from a copy that DVC makes for experiments."""
    folder = copied_from(folder) or folder.resolve()  # DVC may have copied a worktree
    common = _git("-C", str(folder), "rev-parse", "--path-format=absolute", "--git-common-dir").decode().strip()
    # A checkout that is a subfolder of a larger repository keeps its own place.
    top = _git("-C", str(folder), "rev-parse", "--show-toplevel").decode().strip()
    if common and top and Path(common).name == ".git" and Path(common).parent != Path(top):
        return Path(common).parent / folder.relative_to(top)
    return folder


def _git(*arguments: str) -> bytes:
    """What git prints; nothing where git or the repository is missing."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""
