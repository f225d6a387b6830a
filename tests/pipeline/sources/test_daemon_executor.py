"""Threads that do what they are given, and do not keep a process from exiting."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, wait

import pytest

from pipeline.sources.daemon_executor import DaemonExecutor
from tests.pipeline.workspace import ROOT

pytestmark = pytest.mark.process


def test_results_and_errors_come_back_and_no_more_threads_run_than_allowed() -> None:
    threads, barrier = DaemonExecutor(3), threading.Barrier(3, timeout=10)

    def meet(number: int) -> tuple[int, int]:
        barrier.wait()  # passes only if three run at once
        return number, threading.get_ident()

    results = [threads.submit(meet, number) for number in range(30)]
    assert [future.result(10)[0] for future in results] == list(range(30))
    assert len({future.result()[1] for future in results}) == 3
    failed = threads.submit(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        failed.result(10)
    assert threads.submit(int, "12", base=3).result(10) == 5
    threads.shutdown()


def test_what_was_submitted_is_done_or_cancelled_at_a_shutdown() -> None:
    for cancels in (False, True):
        threads, go = DaemonExecutor(1), threading.Event()
        futures = [threads.submit(go.wait, 10), *(threads.submit(int, "1") for _ in range(5))]
        time.sleep(0.1)
        threads.shutdown(wait=False, cancel_futures=cancels)
        go.set()
        assert not wait(futures, timeout=10).not_done
        assert futures[0].result() is True
        for future in futures[1:]:
            if cancels:
                with pytest.raises(CancelledError):
                    future.result()
            else:
                assert future.result() == 1


def test_nothing_is_taken_after_a_shutdown() -> None:
    executor = DaemonExecutor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="was shut down"):
        executor.submit(int)


def test_the_threads_of_an_executor_that_nobody_has_any_more_end() -> None:
    before = threading.active_count()
    threads = DaemonExecutor(4)
    for future in [threads.submit(time.sleep, 0.01) for _ in range(8)]:
        future.result(10)
    assert threading.active_count() == before + 4
    del threads
    deadline = time.monotonic() + 300
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_busy_thread_does_not_keep_a_process_from_exiting() -> None:
    code = (
        "import time\n"
        "from pipeline.sources.daemon_executor import DaemonExecutor\n"
        "threads = DaemonExecutor(2)\n"
        "threads.submit(time.sleep, 1000)\n"
        "threads.submit(print, 'done', flush=True).result()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert (run.stdout, run.returncode) == ("done\n", 0)
