"""Detectron2's command line: its arguments, and a process for each GPU."""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from urllib.parse import urlsplit

import torch
from detectron2.engine import default_argument_parser, launch
from torch.multiprocessing import ProcessExitedException

Task = Callable[[argparse.Namespace], object]


def launch_all(argv: Sequence[str], example: str | None, check: Task, work: Task) -> int:
    """Run ``work`` on the arguments in each process that they ask for; return the exit code of the first that fails.

    SIGTERM and Ctrl-C are for these processes to answer. When one of them is killed, the others end too.

    Args:
        argv: The words of the command line.
        example: How the command is used, for its help.
        check: Raises what is wrong with the arguments, before there are several processes to say so.
        work: Picklable.

    Raises:
        ValueError: There are fewer GPUs than processes, or ``--dist-url`` cannot be used.
    """
    arguments = default_argument_parser(example).parse_args(argv)
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
