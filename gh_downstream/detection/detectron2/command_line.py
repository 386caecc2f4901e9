"""Detectron2's command line: its arguments, a process for each GPU, and what each of them does."""

import argparse
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from detectron2.engine.defaults import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from gh_downstream.detection.detectron2.checks import check_evaluation, check_folder
from gh_downstream.detection.detectron2.trainer import evaluate, load_cfg, train
from gh_downstream.files import make_folder
from gh_downstream.training.configs import find_config

logger = logging.getLogger(__name__)

Task = Callable[[argparse.Namespace], object]


def launch_all(argv: Sequence[str], example: str | None, check: Task, work: Task) -> int:
    """Run ``work`` on the arguments in each process that they ask for; return the exit code of the first that fails.

    SIGTERM and Ctrl-C are for these processes to answer. When one of them is killed, the others end too.

    Args:
        argv: The words of the command line; ``--debug`` may be anywhere among them.
        example: How the command is used, for its help.
        check: Raises what is wrong with the arguments, before there are several processes to say so.
        work: Picklable.

    Raises:
        ValueError: There are fewer GPUs than processes, or ``--dist-url`` cannot be used.
    """
    parser = default_argument_parser(example)
    parser.add_argument("--debug", action="store_true", help="show the whole trace of an error")
    # What stands after a key and its value is taken for keys and values too.
    arguments = parser.parse_args(sorted(argv, key=lambda word: word != "--debug"))
    machines = {name: getattr(arguments, name) for name in ("num_machines", "machine_rank", "dist_url")}
    several = arguments.num_machines * arguments.num_gpus > 1
    if several:
        _check_processes(arguments)
    check(arguments)
    try:
        with _passing_on() if several else nullcontext():
            launch(work, arguments.num_gpus, **machines, args=(arguments,))
    except ProcessExitedException as error:
        if error.exit_code < 0:  # nobody has said why
            print(f"error: {error}, and the others were ended; go on with --resume", file=sys.stderr)
        return error.exit_code if error.exit_code >= 0 else 128 - error.exit_code
    return 0


def check_arguments(arguments: argparse.Namespace) -> CfgNode:
    """Read the configuration that ``config_file``, ``opts``, ``resume`` and ``eval_only`` of a command line ask for.

    A name of a configuration of this package becomes the path of its file, in the arguments too.

    Raises:
        FileNotFoundError, ValueError: See :func:`load_cfg`, :func:`check_folder` and :func:`check_evaluation`.
    """
    if arguments.config_file:
        arguments.config_file = str(find_config(arguments.config_file))
    cfg = load_cfg(arguments.config_file, arguments.opts)
    (check_evaluation if arguments.eval_only else check_folder)(cfg, arguments.resume)
    return cfg


def work(arguments: argparse.Namespace) -> None:
    """What each process does with Detectron2's arguments; errors as of :func:`check_arguments` and :func:`train`."""
    cfg = check_arguments(arguments)
    folder = os.path.join(cfg.OUTPUT_DIR, "evaluation") if arguments.eval_only else cfg.OUTPUT_DIR
    with _left_if_used(Path(cfg.OUTPUT_DIR)):
        make_folder(folder, "OUTPUT_DIR")
        rank, setup = comm.get_rank(), cfg.clone()
        setup.defrost()
        setup.OUTPUT_DIR = None  # Detectron2 would write config.yaml in place, and a kill leave half of it
        for name in ("fvcore", "detectron2", "gh_downstream"):
            setup_logger(folder, distributed_rank=rank, name=name, configure_stdout=False)
        setup_logger(distributed_rank=rank, name="gh_downstream")
        default_setup(setup, arguments)
        logging.getLogger("detectron2.engine.train_loop").addFilter(_without_trace)
        logging.getLogger("gh_downstream.detection.data.records").addFilter(_Once())
        logger.info("the whole configuration:\n%s", cfg.dump())
        (evaluate if arguments.eval_only else train)(cfg, arguments.resume)
    comm.synchronize()  # a process that is gone takes the connections of the others with it


@contextmanager
def _left_if_used(folder: Path) -> Iterator[None]:
    """Remove a folder that is made within the context, where a mistake leaves nothing in it but its log."""
    new = comm.is_main_process() and not folder.exists()
    try:
        yield
    except (ValueError, OSError):
        files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 0]
        if new and all(path.name == ".lock" or path.name.startswith("log.txt") for path in files):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _without_trace(record: logging.LogRecord) -> bool:
    """Detectron2 logs the trace of whatever ends a training; it is raised too, and said where it is caught."""
    return not record.exc_info


class _Once(logging.Filter):
    """Drops what was logged before: the check, the loader and every evaluation read a data set, and count it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


def _check_processes(arguments: argparse.Namespace) -> None:
    found, wanted = torch.cuda.device_count(), arguments.num_gpus
    if wanted > found > 0:  # with none the processes share the CPU
        raise ValueError(f"--num-gpus {wanted}: torch finds {found} GPU(s) here")
    url = urlsplit(arguments.dist_url)
    if arguments.dist_url != "auto" and url.scheme not in ("tcp", "file", "env"):
        raise ValueError(f"--dist-url {arguments.dist_url}: auto, or an address such as tcp://127.0.0.1:29500")
    if url.scheme != "tcp" or url.port is None or arguments.machine_rank > 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is no hindrance
        try:
            probe.bind(("", url.port))
        except OSError as error:
            raise ValueError(
                f"--dist-url {arguments.dist_url}: port {url.port} cannot be used ({error.strerror}); take another, or "
                "--dist-url auto"
            ) from None


@contextmanager
def _passing_on() -> Iterator[None]:
    """Hand SIGTERM and Ctrl-C on to the processes that this one has started."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
