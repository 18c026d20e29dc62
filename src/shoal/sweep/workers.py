"""Where the runs of a sweep are carried out: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from shoal.core import RunFailed, ShoalError
from shoal.experiment import plan_of, run
from shoal.runtimes.cluster.connect import connected

__all__ = ["Job", "carry_out", "has_ray"]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Job:
    """One run, as plain data.

    Args:
        name: of the run.
        given: what :func:`shoal.experiment.plan_of` makes its configuration from.
        folder: where it writes.
        cwd: the folder that relative paths start from.
    """

    name: str
    given: dict[str, Any]
    folder: str
    cwd: str


def has_ray() -> bool:
    return importlib.util.find_spec("ray") is not None


def one(job: Job, threads: int) -> tuple[str, str]:
    """Carry out a job in this process: (its name, why it failed or "")."""
    os.chdir(job.cwd)
    torch.set_num_threads(threads)
    folder = Path(job.folder)
    checkpoint = folder / CHECKPOINT
    try:
        report = run(plan_of(**job.given), out=folder, resume=checkpoint.exists())
    except ShoalError as error:
        return job.name, str(error)
    if report.status != "done":
        return job.name, report.status
    checkpoint.unlink(missing_ok=True)
    return job.name, ""


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def carry_out(
    jobs: Sequence[Job], workers: int, address: str | None, *, threads: int = 1
) -> Iterator[tuple[str, str]]:
    """Carry out jobs side by side; yields (name, why it failed or "") as they end.

    Args:
        workers: how many at a time (on a cluster that runs already, it decides itself).
        address: None: processes of this machine; else a Ray cluster, see
            :func:`shoal.runtimes.cluster.connect.connected`.
        threads: of torch, in each.

    Raises:
        RunFailed: a process of this machine died (Ray starts those anew).
    """
    if address is None:
        yield from _processes(jobs, workers, threads)
    else:
        yield from _ray(jobs, workers, address, threads)


def _processes(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[tuple[str, str]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _end_with_parent) as pool:
        futures = [pool.submit(one, job, threads) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise RunFailed("a process of the sweep died; the same command goes on with the rest") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ray(jobs: Sequence[Job], workers: int, address: str, threads: int) -> Iterator[tuple[str, str]]:
    with connected(address, workers) as ray:
        task = ray.remote(num_cpus=threads, max_retries=3)(one)
        waiting = {task.remote(job, threads): job for job in jobs}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done[0])
            try:
                yield ray.get(done[0])
            except ray.exceptions.WorkerCrashedError:
                yield job.name, "its process died four times"
