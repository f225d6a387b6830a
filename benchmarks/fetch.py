"""How fast objects come from an S3 server, beside boto3 alone with as many threads; and in how much memory.

    python benchmarks/fetch.py [--small 10000] [--small-bytes 4000] [--large-mib 1024] [--rounds 3]

The server is the one that EQREG_TEST_S3_ENDPOINT, _KEY and _SECRET name (.ci/s3_start.sh starts one). Each round runs
boto3's ``download_file`` in a pool of threads, and then the fetch (listing, transfer, SHA-256, MD5 against the ETag).
Prints one JSON line a case: seconds of both (medians), the ratio of the speeds of each round, and how much the peak
memory of a fresh process grows over the fetch. A bucket is made, and removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from pipeline.storage import open_source
from pipeline.storage.s3 import THREADS
from pipeline.storage.transfer import download

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--small-bytes", type=int, default=4_000)
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["AWS_ENDPOINT_URL"] = os.environ["EQREG_TEST_S3_ENDPOINT"]
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["EQREG_TEST_S3_KEY"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = os.environ["EQREG_TEST_S3_SECRET"]
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    if arguments.memory:
        print_memory(arguments.memory)
        return
    client = boto3.client("s3", config=Config(max_pool_connections=THREADS))
    bucket = f"benchmark-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=bucket)
    try:
        data = secrets.token_bytes(arguments.small_bytes)
        keys = [f"small/{number % 100}/{number:05}.png" for number in range(arguments.small)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda key: client.put_object(Bucket=bucket, Key=key, Body=data + key.encode()), keys))
        client.upload_fileobj(Noise(arguments.large_mib * MIB), bucket, "large/one.bin")
        cases = {"small": keys, "large": ["large/one.bin"]}
        for case, names in cases.items():
            figures = measure(client, bucket, case, names, arguments.rounds)
            print(json.dumps({"benchmark": "fetch", "case": case, "objects": len(names), **figures}), flush=True)
    finally:
        empty(client, bucket)


class Noise:
    """A file of random bytes that is never whole in memory."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        size = self.left if size < 0 else min(size, self.left)
        self.left -= size
        return secrets.token_bytes(size)


def measure(client: Any, bucket: str, case: str, names: list[str], rounds: int) -> dict[str, Any]:
    """Seconds, ratio of speeds, megabytes and growth of memory of one case."""
    plain, ours = [], []
    address = f"s3://{bucket}/{case}"
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            start = time.perf_counter()
            plain_transfer(client, bucket, names, Path(folder) / "plain")
            plain.append(time.perf_counter() - start)
            shutil.rmtree(Path(folder) / "plain")
            start = time.perf_counter()
            size = transfer(address, Path(folder) / "ours")
            ours.append(time.perf_counter() - start)
            shutil.rmtree(Path(folder) / "ours")
    memory = subprocess.run(
        [sys.executable, __file__, "--memory", address], capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    return {
        "megabytes": round(size / 1e6, 1),
        "boto3_seconds": round(statistics.median(plain), 3),
        "fetch_seconds": round(statistics.median(ours), 3),
        "speed_ratio": round(statistics.median(a / b for a, b in zip(plain, ours, strict=True)), 3),
        "speed_ratios": [round(a / b, 3) for a, b in zip(plain, ours, strict=True)],
        "memory_growth_mib": round(float(memory), 1),
        "threads": THREADS,
        "rounds": rounds,
    }


def plain_transfer(client: Any, bucket: str, names: list[str], folder: Path) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if len(names) == 1:
        client.download_file(bucket, names[0], str(folder / names[0]))
        return
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: client.download_file(bucket, name, str(folder / name)), names))


def transfer(address: str, folder: Path) -> int:
    """Bytes that were fetched."""
    source = open_source(address)
    with contextlib.redirect_stdout(sys.stderr):  # the progress
        return sum(file.size for file in download(source, source.listing(), folder, address, 1 << 40))


def print_memory(address: str) -> None:
    """How much the largest resident size grows, in MiB."""
    open_source(address)  # imports boto3, and its descriptions of services
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        transfer(address, Path(folder) / "ours")
    print(peak() - before)


def peak() -> float:
    """The largest resident size of this process, in MiB. (The kernel's ru_maxrss counts the parent's before exec.)"""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def empty(client: Any, bucket: str) -> None:
    def pages() -> Iterator[list[dict[str, str]]]:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            yield [{"Key": record["Key"]} for record in page.get("Contents", [])]

    for keys in pages():
        client.delete_objects(Bucket=bucket, Delete={"Objects": keys})
    client.delete_bucket(Bucket=bucket)


if __name__ == "__main__":
    main()
