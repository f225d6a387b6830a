"""A pool of daemon threads: a thread that is blocked by the network does not keep the process from exiting."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")
_Task = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class DaemonExecutor(Executor):
    """An executor like `concurrent.futures.ThreadPoolExecutor`, whose threads the end of the process does not join.

    Args:
        max_workers: largest number of threads; a thread is started only when a task is submitted.
    """

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._is_shut_down = False
        weakref.finalize(self, _stop, self._tasks, self._threads)

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Runs a function in one of the threads.

        Raises:
            RuntimeError: the executor was shut down.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("the executor was shut down")
            self._tasks.put((future, function, args, kwargs))
            if len(self._threads) < self._max_workers:
                thread = threading.Thread(target=_serve, args=(self._tasks,), daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads after the tasks that were submitted, or after their present tasks if these are cancelled."""
        with self._lock:
            self._is_shut_down = True
        while cancel_futures:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is not None and task[0].cancel():
                task[0].set_running_or_notify_cancel()  # else `concurrent.futures.wait` waits for it
        _stop(self._tasks, self._threads)
        for thread in self._threads if wait else ():
            thread.join()


def _serve(tasks: queue.SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        future, function, args, kwargs = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:  # raised again where the result is read
            future.set_exception(error)
        del task, future, function, args, kwargs  # not kept while this thread waits


def _stop(tasks: queue.SimpleQueue[_Task | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        tasks.put(None)
