"""The recipe of the pages for webhooks, with a real tracking server and a receiver, each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from pipeline.tracking.models.champions import history, move_champion
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from tests.pages import python_blocks
from tests.pipeline.cluster.own_cluster import free_ports
from tests.pipeline.conftest import Project
from tests.pipeline.mlflow_server import MlflowServer

pytestmark = [pytest.mark.process, pytest.mark.slow]

PAGE = "docs/how-to/models.md"


def _lines(part: str) -> str:
    (block,) = (block.text for block in python_blocks(PAGE) if part in block.text)
    return block


@pytest.fixture
def server(project: Project, empty_database: Path) -> Iterator[str]:
    """A tracking server with the variables of the page; gives its address."""
    folder = Path("server")
    folder.mkdir()
    shutil.copyfile(empty_database, folder / "server.db")
    variables = {
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "https,http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }
    arguments = ["server", "--workers=1", "--backend-store-uri=sqlite:///server.db"]
    arguments += ["--artifacts-destination=./artifacts"]
    with MlflowServer(arguments, folder, os.environ | variables) as server:
        yield server.address


def test_a_receiver_hears_of_a_new_champion_and_refuses_what_is_not_signed(
    server: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_ports(1)[0]
    text = _lines("HTTPServer").replace("8000", str(port))
    receiver = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        subprocess.run(
            [
                sys.executable,
                "-c",
                _lines("create_webhook").replace("http://127.0.0.1:5000", server).replace("8000", str(port)),
            ],
            check=True,
        )
        registry = Registry(Store("denoise", server))
        client = registry.store.client
        client.create_registered_model(registry.name)
        for _ in range(2):
            client.create_model_version(registry.name, "s3://nowhere/model")
        forged = urllib.request.Request(
            f"http://127.0.0.1:{port}/", b'{"data": {"name": "x", "alias": "champion", "version": "9"}}', method="POST"
        )
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(forged, timeout=20)
        registry.point("challenger", "1")
        for version in ("1", "2"):
            move_champion(registry, version, "promote", "better")
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == f"eqreg-denoise: version {version} is champion\n"
        assert [entry.version for entry in history(registry)] == ["1", "2"]
    finally:
        receiver.kill()
        receiver.wait()
