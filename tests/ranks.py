"""Processes of tests: ranks that run one function together, as torchrun would start them."""

import io
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from multiprocessing.connection import wait

import torch
from torch import distributed

CONTEXT = multiprocessing.get_context("forkserver")


def preload():
    """Have the server that processes are forked from import what is slow to import: once, not in each of them.

    Of the larger libraries those that this process has imported, as its tests need no others.
    """
    larger = sorted({"detectron2.engine", "open_clip", "timm"} & sys.modules.keys())
    CONTEXT.set_forkserver_preload(["torch._dynamo", "accelerate", "torch.utils.tensorboard", *larger])


def run_ranks(function, *arguments, number=2, group=True, limit=900.0):
    """Run ``function(rank, *arguments)`` in several processes, with one thread each and the environment of this one.

    Args:
        function: Found by its name, so not local. What it returns are tensors, numbers, strings and containers of them.
        arguments: Picklable; each process has copies.
        number: Number of processes. A single one is a process like any other, without a group.
        group: Have them in a gloo group. Otherwise they find the environment for one, which accelerate makes of it.
        limit: Seconds after which they have to be done.

    Returns:
        What each rank returned.

    Raises:
        RuntimeError: A rank raised, with its traceback; ended before it returned; or was not done in time. No process
            is left behind.
    """
    # The store is here and the ranks are its clients, as with torchrun: its port cannot be taken in between.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    work = pickle.dumps((function, arguments))  # Here, as multiprocessing would share tensors instead of copying them.
    processes, connections = [], []
    try:
        for rank in range(number):
            ours, theirs = CONTEXT.Pipe()
            environment = _environment(rank, number, store.port)
            process = CONTEXT.Process(target=_run, args=(rank, environment, group and number > 1, work, theirs))
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        return _collect(processes, connections, time.monotonic() + limit)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _environment(rank, number, port):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if number == 1:
        return environment
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return environment | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}


def _run(rank, environment, group, work, connection):
    try:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(1)
        if group:
            distributed.init_process_group("gloo")
        function, arguments = pickle.loads(work)
        returned = io.BytesIO()
        torch.save(function(rank, *arguments), returned)
        if distributed.is_initialized():
            distributed.barrier()  # A process that is gone takes the connections of the others with it.
            distributed.destroy_process_group()
        connection.send((returned.getvalue(), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))
        connection.recv()  # Until it is killed: if it ended now, the others would fail too, of lost connections.


def _collect(processes, connections, deadline):
    returned = {}
    while len(returned) < len(connections):
        missing = [connection for rank, connection in enumerate(connections) if rank not in returned]
        ready = wait(missing, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RuntimeError(f"not done in time: ranks {[connections.index(connection) for connection in missing]}")
        for connection in ready:
            rank = connections.index(connection)
            try:
                result, failure = connection.recv()
            except EOFError:
                processes[rank].join()
                raise RuntimeError(f"rank {rank} ended with exit code {processes[rank].exitcode}") from None
            if failure:
                raise RuntimeError(f"rank {rank} failed\n{failure}")
            returned[rank] = torch.load(io.BytesIO(result), weights_only=True)
    for rank, process in enumerate(processes):
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode != 0:
            raise RuntimeError(f"rank {rank} returned, but ended with exit code {process.exitcode}")
    return [returned[rank] for rank in range(len(connections))]
