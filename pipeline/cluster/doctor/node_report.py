"""The report of a node: its versions, and whether it reaches the artifact store, the packs and the tracking server.

The report runs on the node. The module itself imports only the standard library, so that a node without torch can
report that torch is missing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pipeline.storage.staged_packs import StagedPacks
    from pipeline.storage.store import ArtifactStore

_PACKAGES = ("torch", "ray")
_PROJECT = ("components", "pipeline")
_ANSWER_S = 10.0  # seconds within which a tracking server must answer


@dataclass(frozen=True)
class Questions:
    """The questions for every node.

    Attributes:
        artifact_store: the node writes, reads and deletes an object there; None if this is not checked.
        probe: (name, bytes) of an object that the driver has written there.
        staged: staged packs that the node must see at the driver's path; None if this is not checked.
        tracking: address of the tracking server; None if this is not checked.
        secrets: environment variables with credentials.
    """

    artifact_store: ArtifactStore | None
    probe: tuple[str, bytes] | None
    staged: StagedPacks | None
    tracking: str | None
    secrets: dict[str, str]


@dataclass(frozen=True)
class NodeReport:
    """The report of one node.

    Attributes:
        versions: name -> version of Python, torch, ray and the project's code; "missing" for what is not installed.
        clock: the node's clock at the end of the report, in seconds since 1970.
        problems: one line for each problem, with a hint.
    """

    versions: dict[str, str]
    clock: float
    problems: list[str]


def report(questions: Questions) -> NodeReport:
    """The report of the node on which this function runs."""
    os.environ.update(questions.secrets)
    versions = node_versions()
    problems = [_storage(questions), _packs(questions.staged), _tracking(questions.tracking)]
    return NodeReport(versions, time.time(), [" ".join(problem.split()) for problem in problems if problem])


def node_versions() -> dict[str, str]:
    """Name -> version of Python, of the packages, and of the project's code that this process would import."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package).split("+")[0]  # without the suffix for the kind of GPU
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions | {"eqreg": _project_hash()}


def _project_hash() -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the source files of components and pipeline."""
    digest = hashlib.sha256()
    for package in _PROJECT:
        found = util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            return "missing"
        root = Path(next(iter(found.submodule_search_locations)))
        for path in sorted(path for pattern in ("*.py", "*.c") for path in root.rglob(pattern)):
            digest.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _storage(questions: Questions) -> str | None:
    artifact_store = questions.artifact_store
    if artifact_store is None:
        return None
    try:
        artifact_store.check()
        if questions.probe is not None and artifact_store.read(questions.probe[0]) != questions.probe[1]:
            raise FileNotFoundError
    except FileNotFoundError:
        return (
            f"cluster.storage: {artifact_store.address}: what the driver has written there is not there: another "
            "folder of the same name?: share one among all nodes, or use s3://BUCKET/PREFIX"
        )
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _packs(staged: StagedPacks | None) -> str | None:
    try:
        if staged is not None:
            staged.obtain()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _tracking(address: str | None) -> str | None:
    """Why the tracking server does not answer, with a hint; None if it answers. It is MLflow's server or a database."""
    if address is None:
        return None
    scheme = urlsplit(address).scheme
    try:
        reason = _ask_server(address) if scheme in ("http", "https") else _ask_postgres(address)
    except Exception as error:  # from requests or psycopg, or because the node lacks one of them
        reason = _reason(error)
    if reason is None:
        return None
    return f"MLFLOW_TRACKING_URI: {without_secrets(address)}: {reason}: look at the address, and at firewalls"


def _ask_server(address: str) -> str | None:
    import requests

    statuses = []
    for page in ("health", "version"):
        statuses.append(requests.get(f"{address.rstrip('/')}/{page}", timeout=_ANSWER_S).status_code)
        if statuses[-1] < 400:
            return None
    return f"it answers {statuses[0]}, which MLflow does not"


def _ask_postgres(address: str) -> str | None:
    import psycopg

    plain = address.split("://", 1)[1]
    with psycopg.connect(f"postgresql://{plain}", connect_timeout=int(_ANSWER_S)) as connection:
        connection.execute("SELECT 1")
    return None


def without_secrets(address: str) -> str:
    """An address without user, password and query."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _reason(error: Exception) -> str:
    """A short description of an error. It holds no address, because an address may hold a password."""
    name = type(error).__name__
    words = {"Timeout": "no answer in time", "ConnectionError": "no answer", "OperationalError": "it lets nobody in"}
    for sign, text in words.items():
        if sign in name:
            return text
    return f"{name}: {error}" if isinstance(error, ImportError) else name
