"""What tells one training from all others: the hashes of its data, params and deciding code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import torch

from pipeline.deciding import deciding_hash
from pipeline.job import TrainingJob

DECIDING = ("pipeline.job", "pipeline.cluster.training")
"""The modules that decide what comes of a training: the job, and how workers run it."""


@dataclass(frozen=True)
class TrainingIdentity:
    """Three hashes, 12 hexadecimal digits each: of the packed data, of the params that decide, of the deciding code.

    With the numbers of workers and their threads they decide the weights, to the byte, on one instruction set.
    """

    data: str
    params: str
    code: str

    @classmethod
    def of(cls, job: TrainingJob, data: str) -> TrainingIdentity:
        """``data``: of ``pipeline.lineage.data_hash``."""
        return cls(data, _digest(job.deciding_params()), deciding_hash(*DECIDING))

    @property
    def id(self) -> str:
        """12 hexadecimal digits of the three."""
        return _digest(asdict(self))

    def run(self, num_workers: tuple[int, int], threads: int, on_gpu: bool) -> str:
        """The same with (least, most) workers, the threads of each, their device and torch's build.

        What a run goes on from, and which finished run is taken up, is its own.
        """
        return _digest([asdict(self), num_workers, threads, on_gpu, torch.__version__])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
