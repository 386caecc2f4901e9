"""Lists that workers share: what is in them, and what reading them costs a process."""

import multiprocessing
from dataclasses import dataclass

import pytest

from gh_downstream.data.packed import Packed


@dataclass(frozen=True)
class Place:
    """Where an image is stored."""

    file: str
    offset: int


@pytest.mark.parametrize("items", [[], ["one"], ["a", "", "ein Straßenbild ☔", Place("a.tar", 512), "z" * 70_000]])
def test_it_holds_what_the_list_holds(items):
    packed = Packed(items)
    assert len(packed) == len(items)
    assert bool(packed) == bool(items)
    assert [packed[index] for index in range(len(items))] == items


def private_bytes():
    """Memory that this process shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private"))


def growth(items):
    """What a process that was forked has for itself after it has read all."""

    def read(connection):
        before = private_bytes()
        for index in range(len(items)):
            items[index]
        connection.send(private_bytes() - before)

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=read, args=(theirs,))
    process.start()
    grown = ours.recv()
    process.join()
    return grown


def test_a_worker_that_reads_all_of_it_has_no_copy():
    captions = [f"{index:06} a photo of something on a street in the rain, from above" for index in range(100_000)]
    assert growth(captions) > 8e6
    assert growth(Packed(captions)) < 1e6
