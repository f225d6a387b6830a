"""The real S3 server that ``EQREG_TEST_S3_ENDPOINT`` names, a bucket of a test's own on it, and faults on the way."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import boto3
import pytest
from botocore.config import Config

from pipeline.config.schema import Params, load_params
from pipeline.config.sections import Fetch
from tests.pipeline.proxy import Proxy
from tests.pipeline.workspace import ROOT

if TYPE_CHECKING:
    from tests.pipeline.conftest import Project

RAW = Path("data/raw")
MIB = 1 << 20


@functools.cache
def _shipped() -> Params:
    return load_params(ROOT / "params.yaml")


def settings(source: str, auxiliary: str | None = None, max_gib: float = 100.0) -> Params:
    """The shipped params with another section fetch."""
    return _shipped().model_copy(update={"fetch": Fetch(source=source, auxiliary=auxiliary, max_gib=max_gib)})


def manifest() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((RAW / "manifest.json").read_text()))


def files_below(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check_raw(contents: dict[str, bytes], kind: str = "images") -> None:
    """data/raw holds exactly these files, and its manifest their sizes and sums."""
    assert files_below(RAW / kind) == contents
    records = manifest()[kind]
    assert [record["name"] for record in records] == sorted(contents)
    for record in records:
        data = contents[record["name"]]
        assert (record["bytes"], record["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


class Bucket:
    """A bucket on the server, filled and changed directly, whatever stands between the server and the fetch."""

    def __init__(self, endpoint: str, key: str, secret: str) -> None:
        self.endpoint, self.key, self.secret = endpoint, key, secret
        self.name = f"test-{secrets.token_hex(6)}"
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(max_pool_connections=32, s3={"addressing_style": "path"}),
        )
        self.client.create_bucket(Bucket=self.name)

    def put(self, name: str, data: bytes, **options: Any) -> str:
        """Puts an object in one piece and gives its ETag."""
        return str(self.client.put_object(Bucket=self.name, Key=name, Body=data, **options)["ETag"].strip('"'))

    def put_all(self, contents: dict[str, bytes], prefix: str = "") -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda item: self.put(prefix + item[0], item[1]), contents.items()))

    def put_in_parts(self, name: str, data: bytes, part: int | None = None) -> str:
        """Puts an object in parts, as boto3 does with large ones, or in parts of a size that nobody uses."""
        if part is None:
            self.client.upload_fileobj(io.BytesIO(data), self.name, name)
        else:
            where = {"Bucket": self.name, "Key": name}
            upload = self.client.create_multipart_upload(**where)["UploadId"]
            parts = []
            for start in range(0, len(data), part):
                number = len(parts) + 1
                piece = data[start : start + part]
                done = self.client.upload_part(**where, UploadId=upload, PartNumber=number, Body=piece)
                parts.append({"PartNumber": number, "ETag": done["ETag"]})
            self.client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
        return str(self.client.head_object(Bucket=self.name, Key=name)["ETag"].strip('"'))

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=name)

    def address(self, prefix: str = "") -> str:
        return f"s3://{self.name}/{prefix}" if prefix else f"s3://{self.name}"

    def remove(self) -> None:
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name):
            if keys := [{"Key": record["Key"]} for record in page.get("Contents", [])]:
                self.client.delete_objects(Bucket=self.name, Delete={"Objects": keys})
        self.client.delete_bucket(Bucket=self.name)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment with none of the user's own settings of AWS."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return monkeypatch


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that refuses connections: bound, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def bucket(aws: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket; the environment holds the address of its server and the credentials."""
    endpoint = os.environ.get("EQREG_TEST_S3_ENDPOINT")
    if not endpoint:
        pytest.skip("no S3 server: set EQREG_TEST_S3_ENDPOINT, _KEY and _SECRET; .ci/run starts one")
    bucket = Bucket(endpoint, os.environ["EQREG_TEST_S3_KEY"], os.environ["EQREG_TEST_S3_SECRET"])
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    aws.setenv("AWS_ACCESS_KEY_ID", bucket.key)
    aws.setenv("AWS_SECRET_ACCESS_KEY", bucket.secret)
    yield bucket
    bucket.remove()


@pytest.fixture
def proxy(bucket: Bucket, aws: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server, which the fetch takes for it."""
    with Proxy(bucket.endpoint) as proxy:
        aws.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr("pipeline.sources.download.FIRST_WAIT", 0.01)


def start_ready(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that runs the code, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert read_line(process) == "ready\n"
    return process


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints. What follows stays in the pipe, so that ``communicate`` finds it.

    ``process.stdout.readline`` may take more than a line out of the pipe; ``communicate`` does not look there.
    """
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(process.stdout.fileno(), 1)):
        line += byte
    return line.decode()


def start_fetch(project: Project, source: str) -> subprocess.Popen[str]:
    """`eqreg fetch` of the project, as a process."""
    project.set({"fetch.source": source})
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "fetch"],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
