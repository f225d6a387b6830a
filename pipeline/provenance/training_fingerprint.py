"""The fingerprint of a training: the hashes of its data, params and deciding code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from components.brief import short_digest
from pipeline.provenance.code_hash import deciding_hash

DECIDING = ("pipeline.training_job", "pipeline.cluster.training")
"""The modules that decide the result of a training: the job, and its execution by the workers."""


@dataclass(frozen=True)
class TrainingFingerprint:
    """Three hashes of 12 hexadecimal digits each.

    Together with the numbers of workers and of their threads, they determine the weights to the byte on one instruction
    set.

    Attributes:
        data: hash of the packed data.
        params: hash of the params that decide the result.
        code: hash of the deciding code.
    """

    data: str
    params: str
    code: str

    @classmethod
    def of(cls, deciding_params: Mapping[str, Any], modules: Sequence[str], data: str) -> TrainingFingerprint:
        """Builds the fingerprint.

        Args:
            deciding_params: ``TrainingJob.deciding_params``.
            modules: ``Params.modules``, which hold what the params choose by name.
            data: ``data_hash``.
        """
        return cls(data, _digest(deciding_params), deciding_hash(*DECIDING, *modules))

    @property
    def id(self) -> str:
        """A hash of the three hashes, 12 hexadecimal digits."""
        return _digest(asdict(self))

    def run(self, num_workers: tuple[int, int], threads: int, on_gpu: bool) -> str:
        """Returns a hash of the fingerprint, the workers and the version of torch, 12 hexadecimal digits.

        A run only resumes from checkpoints with this hash, and only a finished run with this hash is reused.

        Args:
            num_workers: (least, most) number of workers.
            threads: number of threads of each worker.
            on_gpu: whether the workers train on GPUs.
        """
        return _digest([asdict(self), num_workers, threads, on_gpu, torch.__version__])


def _digest(value: object) -> str:
    return short_digest(json.dumps(value, sort_keys=True))
