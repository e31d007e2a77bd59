"""Who runs units of work: processes of this machine, or the workers of Dask, Ray or submitit where these are installed.

Each is a `WorkerPool` around an executor of `concurrent.futures`, or around what is as good as one.
Over 250 lines: four kinds of workers, of about thirty lines each, and the choice among them by name.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from odenet._errors import InputError, OdenetError
from odenet._names import lookup
from odenet._report.machine import cores

ExecutorChoice = str | Executor


class WorkerPool(ABC):
    """Workers, and how units of work get to them.

    Args:
        workers: how many units run at once.
    """

    workers: int

    @abstractmethod
    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a worker call a function of a module with arguments that can be pickled."""

    def renew(self) -> None:  # noqa: B027  most need nothing
        """New workers in the place of some that were lost, where the executor does not see to that itself."""

    def close(self) -> None:  # noqa: B027
        """Let go of workers; what still runs is given up."""


class ForeignPool(WorkerPool):
    """Around an executor that a caller made, and closes.

    Args:
        executor: anything with the `submit` of `concurrent.futures`.
    """

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        workers = getattr(executor, "_max_workers", None)  # of the standard library's
        self.workers = workers if isinstance(workers, int) else os.cpu_count() or 1

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.executor.submit(function, *arguments)


class ProcessWorkers(WorkerPool):
    """Processes of this machine. They are spawned: a framework's threads do not survive a fork.

    Args:
        detail: how many, as text; empty for one a core.
    """

    def __init__(self, detail: str = "") -> None:
        self.workers = _count(detail, "processes") if detail else cores() or 1
        self.executor = self._made()

    def _made(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(max(1, (cores() or 1) // self.workers),),
        )

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.executor.submit(function, *arguments)

    def renew(self) -> None:
        """New processes for all: a pool that lost one process is broken as a whole."""
        self.close()
        self.executor = self._made()

    def close(self) -> None:
        """Python would wait for the processes to end their unit, which may take minutes."""
        processes = list((getattr(self.executor, "_processes", None) or {}).values())
        self.executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


class DaskWorkers(WorkerPool):
    """The workers of a Dask cluster.

    Args:
        detail: the scheduler's address; or how many workers a cluster on this machine shall have.
    """

    def __init__(self, detail: str = "") -> None:
        distributed = _module("distributed", "dask")
        if not detail or detail.isdecimal():
            workers = _count(detail, "dask") if detail else cores() or 1
            self.client = distributed.Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        else:
            self.client = distributed.Client(detail)
        self.workers = max(1, sum(self.client.ncores().values()))
        self.executor = self.client.get_executor(pure=False)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The scheduler itself takes a unit to another worker when one is lost."""
        return self.executor.submit(function, *arguments)

    def close(self) -> None:
        self.executor.shutdown(wait=False)
        self.client.close()
        if self.client.cluster is not None:
            self.client.cluster.close()


class RayWorkers(WorkerPool):
    """The workers of a Ray cluster.

    Args:
        detail: its address, such as auto; or how many CPUs one on this machine shall have.
    """

    def __init__(self, detail: str = "") -> None:
        self.ray = _module("ray", "ray")
        self.started = not self.ray.is_initialized()
        if self.started:
            here = not detail or detail.isdecimal()
            cpus = (_count(detail, "ray") if detail else cores() or 1) if here else None
            options = {"num_cpus": cpus, "include_dashboard": False} if here else {"address": detail}
            self.ray.init(**options, log_to_driver=False, configure_logging=False)
        self.workers = max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        self.call = self.ray.remote(_called)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Ray itself runs a task again when its worker is lost."""
        return self.call.remote(function, *arguments).future()

    def close(self) -> None:
        if self.started:
            self.ray.shutdown()


class SubmititWorkers(WorkerPool):
    """Jobs of a batch system by submitit, one a unit.

    Args:
        detail: the kind of cluster (slurm, local; empty for what is there), then, between commas, `name=value` as
            `submitit.AutoExecutor.update_parameters` takes them, `folder=` of its files and `workers=`, how many jobs
            are in the queue at once.
    """

    def __init__(self, detail: str = "") -> None:
        submitit = _module("submitit", "submitit")
        cluster, *pairs = detail.split(",")
        options = dict(_pair(pair) for pair in pairs)
        self.workers = _count(options.pop("workers", "8"), "submitit")
        folder = Path(options.pop("folder", ".submitit"))
        self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster or None)
        numbers = {name: int(value) if value.isdecimal() else value for name, value in options.items()}
        self.executor.update_parameters(**{"timeout_min": 60, **numbers})
        self.waiting = ThreadPoolExecutor(self.workers)  # a thread waits for each job
        self.jobs: list[Any] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        job = self.executor.submit(function, *arguments)
        self.jobs.append(job)
        return self.waiting.submit(job.result)

    def close(self) -> None:
        for job in self.jobs:
            if not job.done():
                job.cancel()
        self.waiting.shutdown(wait=False, cancel_futures=True)


KINDS: dict[str, Callable[[str], WorkerPool]] = {
    "processes": ProcessWorkers,
    "dask": DaskWorkers,
    "ray": RayWorkers,
    "submitit": SubmititWorkers,
}
"""What `--executor` and `executor=` name."""


def pool(choice: ExecutorChoice) -> WorkerPool:
    """The workers that are named, or those of an executor.

    Args:
        choice: `processes`, `processes:4`, `dask`, `dask:tcp://host:8786`, `ray`, `ray:auto`, `submitit:slurm,...`;
            or anything with the `submit` of `concurrent.futures`, which the caller closes.

    Raises:
        InputError: another name, or a package that is not installed.
    """
    if isinstance(choice, str):
        name, _, detail = choice.partition(":")
        kind = lookup("executor", name, KINDS)
        try:
            return kind(detail)
        except OdenetError:
            raise
        except Exception as error:  # each library has its own for a cluster that is not there
            raise InputError(
                f"executor {choice!r} could not be started ({type(error).__name__}: {error})",
                "a cluster that can be reached from here",
            ) from error
    if not callable(getattr(choice, "submit", None)):
        raise InputError(
            f"an executor of type {type(choice).__name__}", f"{', '.join(KINDS)}, or an object with submit(function, *)"
        )
    return ForeignPool(choice)


def require_known(choice: ExecutorChoice) -> None:
    """Raises InputError for a name of none, before anything is started."""
    if isinstance(choice, str):
        lookup("executor", choice.partition(":")[0], KINDS)


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"executor {package} without {name}, which cannot be imported ({error})",
            "executor processes, which needs nothing",
            f"pip install {package}{'[distributed]' if package == 'dask' else ''}",
        ) from error


def _count(text: str, pool_name: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 10**5):
        raise InputError(f"{text!r} workers of {pool_name}", "a whole number, at least 1")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(f"{text!r} of submitit", "name=value between commas, as in slurm,slurm_partition=gpu")
    return name, value


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _begin(threads: int) -> None:
    """In a new process, before a framework is imported.

    Ctrl-C reaches every process of a terminal; what it means is the main one's to decide. Processes with a thread for
    each core wait for one another: two of them on two cores took ten times as long as one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
