"""How fast objects come from an S3 server, beside boto3 alone; and in how much memory.

    python benchmarks/fetch.py [--small 10000] [--small-bytes 4000] [--large-mib 1024] [--rounds 5]

The server is the one that EQREG_TEST_S3_ENDPOINT, _KEY and _SECRET name (.ci/s3_start.sh starts one). Prints one JSON
line a case; seconds are medians of rounds in which both sides take turns. A bucket is made, and removed at the end.

small      many small objects: boto3's ``download_file`` in a pool of threads, and the fetch.
transfer   one large object: ``download_file`` of boto3 with the client and the configuration of the fetch, and the
           transfer of the fetch without any sum. `boto3_default_seconds` is that of another client as it is by default.
sums       the same object, verified by a SHA-256 beside it, by S3's own checksum of the whole object if the server has
           one, and by the MD5 in its ETag: ``download_file`` and then one pass of SHA-256 over the file, and the fetch.
"""

from __future__ import annotations

import argparse
import base64
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
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from components.data.packs import file_sha256
from pipeline.sources.download import download
from pipeline.sources.kinds.s3 import THREADS, TRANSFER, Bucket
from pipeline.sources.open import open_source
from pipeline.sources.source import Source

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--small-bytes", type=int, default=4_000)
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
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
        if arguments.small:
            measure_small(client, bucket, arguments.small, arguments.small_bytes)
        if arguments.large_mib:
            measure_large(client, bucket, arguments.large_mib * MIB, arguments.rounds)
    finally:
        empty(client, bucket)


def measure_small(client: Any, bucket: str, num_objects: int, num_bytes: int) -> None:
    data = secrets.token_bytes(num_bytes)
    keys = [f"small/{number % 100}/{number:05}.png" for number in range(num_objects)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=bucket, Key=key, Body=data + key.encode()), keys))

    def plain(folder: Path) -> None:
        for key in keys:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda key: client.download_file(bucket, key, str(folder / key)), keys))

    address = f"s3://{bucket}/small"
    source = open_source(address)
    boto3_seconds, fetch_seconds = take_turns(1, plain, lambda folder: fetch(source, folder))
    show(
        "small",
        objects=num_objects,
        megabytes=num_objects * num_bytes / 1e6,
        boto3_seconds=boto3_seconds,
        fetch_seconds=fetch_seconds,
        speed_ratio=ratio(boto3_seconds, fetch_seconds),
        memory_growth_mib=memory(address),
    )


def measure_large(client: Any, bucket: str, num_bytes: int, rounds: int) -> None:
    client.upload_fileobj(Noise(num_bytes), bucket, "etag/one.bin")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.bin"
        client.download_file(bucket, "etag/one.bin", str(path))
        client.upload_file(str(path), bucket, "sha256/one.bin", ExtraArgs={"Metadata": {"sha256": file_sha256(path)}})
        crc = base64.b64encode(crc32(path).to_bytes(4)).decode()
    source = open_source(f"s3://{bucket}/etag")
    assert isinstance(source, Bucket)
    item = source.listing().objects[0]

    def boto3_alone(folder: Path) -> None:
        source.client.download_file(bucket, "etag/one.bin", str(folder / "one.bin"), Config=TRANSFER)

    def boto3_by_default(folder: Path) -> None:
        client.download_file(bucket, "etag/one.bin", str(folder / "one.bin"))

    def transfer(folder: Path) -> None:
        save = source.read(item, 0).save
        assert save is not None
        save(folder / "one.bin", lambda num_bytes: None)

    def boto3_and_sha256(folder: Path) -> None:
        boto3_alone(folder)
        file_sha256(folder / "one.bin")

    boto3_seconds, transfer_seconds = take_turns(rounds, boto3_alone, transfer)
    show(
        "transfer",
        megabytes=num_bytes / 1e6,
        boto3_seconds=boto3_seconds,
        boto3_default_seconds=take_turns(rounds, boto3_by_default)[0],
        transfer_seconds=transfer_seconds,
        speed_ratio=ratio(boto3_seconds, transfer_seconds),
        bound=0.95,
        rounds=rounds,
    )
    client.put_object(Bucket=bucket, Key="probe", Body=b"", ChecksumAlgorithm="CRC32")
    has_checksums = "ChecksumCRC32" in client.head_object(Bucket=bucket, Key="probe", ChecksumMode="ENABLED")
    if has_checksums:
        client.copy_object(
            Bucket=bucket, Key="crc/one.bin", CopySource=f"{bucket}/etag/one.bin", ChecksumAlgorithm="CRC32"
        )
    cases = (
        ("sha256", "SHA-256 in the metadata", None),
        (
            "crc" if has_checksums else "etag",
            f"S3's CRC32{'' if has_checksums else ' (added: the server has none)'}",
            crc,
        ),
        ("etag", "MD5 of the parts in the ETag", None),
    )
    for name, verified_by, added in cases:
        address = f"s3://{bucket}/{name}"
        opened = open_source(address)
        assert isinstance(opened, Bucket)
        if added and not has_checksums:  # to what the server says of an object, as if it had this checksum of it
            opened.client.meta.events.register(
                "after-call.s3.HeadObject", lambda parsed, **_: parsed.update(ChecksumCRC32=crc)
            )
        bound_seconds, fetch_seconds = take_turns(
            rounds, boto3_and_sha256, lambda folder, opened=opened: fetch(opened, folder)
        )
        show(
            "sums",
            verified_by=verified_by,
            megabytes=num_bytes / 1e6,
            boto3_and_sha256_seconds=bound_seconds,
            fetch_seconds=fetch_seconds,
            speed_ratio=ratio(bound_seconds, fetch_seconds),
            bound=1.0,
            memory_growth_mib=memory(address),
            rounds=rounds,
        )


def crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            crc = zlib.crc32(chunk, crc)
    return crc


class Noise:
    """A file of random bytes that is never whole in memory."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        size = self.left if size < 0 else min(size, self.left)
        self.left -= size
        return secrets.token_bytes(size)


def take_turns(rounds: int, *ways: Callable[[Path], None]) -> list[list[float]]:
    """Seconds of each round of each way, which gets an empty folder."""
    seconds: list[list[float]] = [[] for _ in ways]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for way, own in zip(ways, seconds, strict=True):
                target = Path(folder) / "target"
                target.mkdir()
                start = time.perf_counter()
                way(target)
                own.append(time.perf_counter() - start)
                shutil.rmtree(target)
    return seconds


def ratio(others: list[float], own: list[float]) -> float:
    """Median of the ratio of the speeds of each round."""
    return statistics.median(a / b for a, b in zip(others, own, strict=True))


def show(case: str, **figures: Any) -> None:
    """Prints a line; a list of seconds as its median, and the seconds beside it."""
    line: dict[str, Any] = {"benchmark": "fetch", "case": case, "threads": THREADS}
    for name, value in figures.items():
        if isinstance(value, list):
            line[name] = round(statistics.median(value), 3)
            line[f"{name}_of_rounds"] = [round(number, 3) for number in value]
        else:
            line[name] = round(value, 3) if isinstance(value, float) else value
    print(json.dumps(line), flush=True)


def fetch(source: Source, folder: Path) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # the progress
        download(source, source.listing(), folder / "fetched", "benchmark", 1 << 40)


def memory(address: str) -> float:
    """How much the peak memory of a fresh process grows over the fetch, in MiB."""
    command = [sys.executable, __file__, "--memory", address]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def print_memory(address: str) -> None:
    """How much the largest resident size grows, in MiB."""
    source = open_source(address)  # imports boto3, and its descriptions of services
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        fetch(source, Path(folder))
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
