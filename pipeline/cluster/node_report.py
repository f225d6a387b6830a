"""What a node says of itself: its versions, and whether it reaches what all nodes must. Runs on the node.

It imports only what every Python has until it is asked: a node without torch is to say so.
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
    from pipeline.storage.delivery import Delivery
    from pipeline.storage.places import Place

_PACKAGES = ("torch", "ray")
_PROJECT = ("components", "pipeline")
_ANSWER_S = 10.0  # seconds within which a tracking server answers


@dataclass(frozen=True)
class Questions:
    """What every node is asked.

    Attributes:
        place: to write, read and delete at; None: that is not asked.
        probe: (name, bytes) of an object that the driver has written there.
        delivery: of packs that are to be seen where the driver sees them; None: that is not asked.
        tracking: address of the tracking server; None: that is not asked.
        secrets: credentials, for the environment.
    """

    place: Place | None
    probe: tuple[str, bytes] | None
    delivery: Delivery | None
    tracking: str | None
    secrets: dict[str, str]


@dataclass(frozen=True)
class NodeReport:
    """Attributes: name -> version, of Python, torch, ray and the project's code ("missing" where there is none); the
    node's clock when it had answered, in seconds since 1970; and what is wrong, with its remedy, a line each.
    """

    versions: dict[str, str]
    clock: float
    problems: list[str]


def report(questions: Questions) -> NodeReport:
    """The answers of the node that this runs on."""
    os.environ.update(questions.secrets)
    versions = node_versions()
    problems = [_storage(questions), _packs(questions.delivery), _tracking(questions.tracking)]
    return NodeReport(versions, time.time(), [" ".join(problem.split()) for problem in problems if problem])


def node_versions() -> dict[str, str]:
    """Of this process's Python, of the packages in it, and of the project's code as it would be imported here."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package).split("+")[0]  # without the kind of GPU it is built for
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions | {"eqreg": _project_hash()}


def _project_hash() -> str:
    """12 hexadecimal digits of the sources of components and pipeline."""
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
    place = questions.place
    if place is None:
        return None
    try:
        place.check()
        if questions.probe is not None and place.read(questions.probe[0]) != questions.probe[1]:
            raise FileNotFoundError
    except FileNotFoundError:
        return (
            f"cluster.storage: {place.address}: what the driver has written there is not there: another folder of the "
            "same name?: share one among all nodes, or use s3://BUCKET/PREFIX"
        )
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _packs(delivery: Delivery | None) -> str | None:
    try:
        if delivery is not None:
            delivery.obtain()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _tracking(address: str | None) -> str | None:
    """Whether the server answers: MLflow's by HTTP, or a database."""
    if address is None:
        return None
    scheme = urlsplit(address).scheme
    try:
        reason = _ask_server(address) if scheme in ("http", "https") else _ask_postgres(address)
    except Exception as error:  # of requests, psycopg, and of a node that lacks one of them
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
    """An address without what may be a user and a password."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _reason(error: Exception) -> str:
    """In a few words, without addresses: those may hold passwords."""
    name = type(error).__name__
    words = {"Timeout": "no answer in time", "ConnectionError": "no answer", "OperationalError": "it lets nobody in"}
    for sign, text in words.items():
        if sign in name:
            return text
    return f"{name}: {error}" if isinstance(error, ImportError) else name
