"""Several trainings at a time, each in a process and with a log of its own."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from gh_downstream.harmonization.checks import check_at_least
from gh_downstream.training.stopping import Stopped, StopSignals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: Names it in the log of the caller.
        log: File that everything it says is appended to.
        run: Trains, and returns a line about it. Picklable, as it runs in a process that is spawned.
    """

    name: str
    log: Path
    run: Callable[[], str]


def run_jobs(jobs: Sequence[Job], at_a_time: int | None = None) -> dict[str, str]:
    """Run jobs in processes of their own, and log what each of them returns.

    The cores are shared between them, unless ``OMP_NUM_THREADS`` says how many threads each has.

    Args:
        jobs: The jobs, started in their order.
        at_a_time: Number of processes, at least 1; as many as there are cores by default.

    Returns:
        What went wrong, with the name of the log, by the name of the job; empty when all went well. A job that fails,
        or whose process is killed, does not stop the others.

    Raises:
        Stopped: After SIGTERM or Ctrl-C, which go on to the jobs that run, once these have ended.
        ValueError: ``at_a_time`` is out of its range.
    """
    check_at_least("at_a_time", at_a_time, 1)
    cores = os.cpu_count() or 1
    workers = min(at_a_time or cores, len(jobs))
    failed: dict[str, str] = {}
    if not jobs:
        return failed
    waiting = deque(jobs)
    with StopSignals() as stop, ThreadPoolExecutor(workers) as slots:
        running = {slots.submit(_run_waiting, waiting, max(1, cores // workers), failed) for _ in range(workers)}
        told: set[int | None] = set()
        while running:
            done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            if stop.number:
                waiting.clear()
                for child in multiprocessing.active_children():
                    if child.pid not in told:  # A second signal ends them at once.
                        child.terminate()
                        told.add(child.pid)
            for slot in done:
                slot.result()
    if stop.number:
        logger.info("stopped by %s; call again to go on", signal.Signals(stop.number).name)
        raise Stopped(128 + stop.number)
    return failed


def _run_waiting(waiting: deque[Job], threads: int, failed: dict[str, str]) -> None:
    """Run one job after the other in a process, and in a new one when it was killed."""
    # The terminal sends Ctrl-C to all processes: the jobs, which inherit this, hear of it by SIGTERM alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pool = _new_process()
    try:
        while (job := _next(waiting)) is not None:
            try:
                logger.info("%s: %s", job.name, pool.submit(_run, job, threads).result())
            except BrokenProcessPool:
                reason = "its process was killed, perhaps for want of memory"
                failed[job.name] = f"{reason} (log: {job.log})"
                pool.shutdown()
                pool = _new_process()
            except Stopped:
                failed[job.name] = f"stopped, and goes on when it is called again (log: {job.log})"
            except Exception as error:
                failed[job.name] = f"{error} (log: {job.log})"
    finally:
        pool.shutdown()


def _new_process() -> ProcessPoolExecutor:
    # Spawned, as torch's threads do not survive a fork. A pool of one: with more, the death of one ends all of them.
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_watch_parent)


def _next(waiting: deque[Job]) -> Job | None:
    try:
        return waiting.popleft()
    except IndexError:  # the other slots took the rest
        return None


def _watch_parent() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed cannot stop its trainings; what they had written is resumed by the next call.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(job: Job, threads: int) -> str:
    if "OMP_NUM_THREADS" not in os.environ:  # by which the user chooses
        torch.set_num_threads(threads)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    # What libraries print and warn of belongs there too, not between the lines of the parent.
    with job.log.open("a", buffering=1) as log, contextlib.redirect_stdout(log):
        os.dup2(log.fileno(), sys.stderr.fileno())
        logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
        try:
            return job.run()
        except Exception:
            logger.exception("the training failed")
            raise
