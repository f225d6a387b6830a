"""``mlflow models serve`` of a registered version: a line of JSON a size and network.

For each size: the time of a request (an encoded photograph in, the restored one out, over HTTP) over the time that the
network alone takes for the same image as a tensor in tiles, in a process of its own with as many threads. Both are run
in turn; the figures are medians over the rounds, with quartiles. Then: the largest memory of the server beyond what it
had before the first request, four clients at once, and what it answers to bad requests. The images are synthetic
photographs (smooth shapes with noise), as PNG.

    python -m benchmarks.serving [--rounds 5] [--networks default unet] > benchmarks/results/serving.jsonl
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import io
import json
import os
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from components.inference.tiles import restore
from components.networks import build_network
from pipeline.config.schema import load_params
from pipeline.tracking.models.loading import load_registered
from pipeline.tracking.models.registry import CHAMPION, Registry
from pipeline.tracking.store import Store
from tests.pipeline.mlflow_server import MlflowServer

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"default": ((512, 512), (2048, 2048), (3000, 4000)), "unet": ((512, 512),)}
"""Heights and widths for each network; the published U-Net takes minutes for the larger ones on two cores."""

BOUND = 1.3


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth shapes with noise of 5 levels, ``(H, W, 3)`` uint8."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noise = generator.normal(0, 5, smooth.shape).astype(np.float32)
    pixels: np.ndarray = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return pixels


class Server(MlflowServer):
    """``mlflow models serve`` as a process."""

    def __init__(self, folder: Path, uri: str) -> None:
        variables = {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "900"}
        super().__init__(["models", "serve", "-m", uri, "--env-manager", "local"], folder, os.environ | variables)

    def ask(self, file: bytes, **params: Any) -> tuple[int, Any]:
        body = {
            "dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(file).decode()]]},
            "params": params,
        }
        request = urllib.request.Request(
            f"{self.address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def memory(self) -> int:
        """Resident bytes of the process that has most."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return max(process.memory_info().rss for process in family)


def watched(server: Server, call: Any) -> tuple[Any, int]:
    """The result of a call, and the most memory that the server had meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running, most = pool.submit(call), 0
        while not running.done():
            most = max(most, server.memory())
            time.sleep(0.05)
        return running.result(), most


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 3) for value in np.percentile(values, [25, 50, 75])]


def measure(name: str, settings: dict[str, Any], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        registry = Registry(Store("denoise"))
        network = build_network(**settings)
        version = registry.add(registry.store.begin("run", {}, {}), network.eval(), "none", {})
        registry.point(CHAMPION, version.number)
        uri = f"models:/{registry.name}@{CHAMPION}"
        program = load_registered(uri, registry.store.uri, "cpu")
        with Server(folder, uri) as server:
            for height, width in SIZES[name]:
                row = measure_size(server, program, height, width, rounds)
                print(json.dumps({"network": name, "size": f"{width}x{height}", **row}), flush=True)
            print(json.dumps({"network": name, **several_clients(server)}), flush=True)
            print(json.dumps({"network": name, **bad_requests(server)}), flush=True)


def measure_size(server: Server, program: Any, height: int, width: int, rounds: int) -> dict[str, Any]:
    pixels = photograph(height, width)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    image = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).contiguous()
    before, most, ratios, requests, networks = server.memory(), 0, [], [], []
    answer: Any = None
    for number in range(rounds + 1):
        start = time.perf_counter()
        (status, answer), peak = watched(server, lambda: server.ask(stream.getvalue()))
        request = time.perf_counter() - start
        assert status == 200, answer
        start = time.perf_counter()
        expected = restore(program, image)
        network = time.perf_counter() - start
        most = max(most, peak)
        if number:  # the first round is the warm-up
            requests.append(request)
            networks.append(network)
            ratios.append(request / network)
    with Image.open(io.BytesIO(base64.b64decode(answer["predictions"][0]["image"]))) as picture:
        difference = np.abs(np.asarray(picture) / 255 - expected.clamp(0, 1).permute(1, 2, 0).numpy()).max()
    return {
        "request / network": quartiles(ratios),
        "bound": BOUND,
        "network_s": quartiles(networks),
        "request_s": quartiles(requests),
        "sent_MB": round(len(base64.b64encode(stream.getvalue())) / 1e6, 2),
        "memory_over_idle_MB": round((most - before) / 1e6),
        "largest_difference_levels": round(float(difference) * 255, 3),
        "rounds": rounds,
    }


def several_clients(server: Server) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(photograph(512, 512)).save(stream, "PNG")
    alone = statistics.median(timed(lambda: server.ask(stream.getvalue())) for _ in range(5))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        start = time.perf_counter()
        statuses = [status for status, _ in pool.map(lambda _: server.ask(stream.getvalue()), range(12))]
        together = time.perf_counter() - start
    return {
        "what": "12 requests of 512x512 by four clients at once",
        "all answered": statuses == [200] * 12,
        "time / 12 requests of one client": round(together / (12 * alone), 3),
    }


def timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bad_requests(server: Server) -> dict[str, Any]:
    small, bomb = io.BytesIO(), io.BytesIO()
    Image.fromarray(photograph(64, 64)).save(small, "PNG")
    Image.new("1", (10000, 10000)).save(bomb, "PNG")
    bad = {"200 MB": b"A" * (150 << 20), "bomb": bomb.getvalue(), "truncated": small.getvalue()[:900]}
    answers = {}
    for name, file in bad.items():
        (status, text), most = watched(server, lambda file=file: server.ask(file))
        answers[name] = {"status": status, "memory_MB": round(most / 1e6), "answer": str(text)[:160]}
    return {"what": "bad requests", **answers, "alive after": server.ask(small.getvalue())[0] == 200}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=["default", "unet"])
    arguments = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    channels = {"in_channels": 3, "out_channels": 3}
    networks = {
        "default": {**asdict(params.network_settings), "name": params.network_name, **channels},
        "unet": {"name": "unet", **channels},  # of published size
    }
    for name in arguments.networks:
        measure(name, networks[name], arguments.rounds)


if __name__ == "__main__":
    main()
