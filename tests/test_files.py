"""Files that are written whole or not at all, on a full disk too, and folders with one writer."""

import errno
import os
import resource

import pytest
import torch

from gh_downstream.files import atomic_file, only_writer, write_atomically
from tests.kill import exit_code, held


def test_the_old_file_can_be_kept(tmp_path):
    for content in ("one", "two", "three"):
        with atomic_file(tmp_path / "last", tmp_path / "previous") as file:
            file.write(content.encode())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"last": "three", "previous": "two"}


def test_an_error_of_somebody_else_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^of something else$"), atomic_file(tmp_path / "x"):
        raise FileNotFoundError("of something else")
    assert not list(tmp_path.iterdir())


def write_beyond_the_limit(path, with_torch):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        if with_torch:
            with atomic_file(path) as file:
                torch.save(torch.zeros(100_000), file)
        else:
            write_atomically(path, 400_000 * b"x")
    except OSError as error:
        raise SystemExit(0 if (error.errno, error.filename) == (errno.EFBIG, str(path)) else 1) from None


@pytest.mark.parametrize("with_torch", [False, True])
def test_where_there_is_no_room_the_file_is_named_and_stays(tmp_path, with_torch):
    path = tmp_path / "file"
    path.write_text("old")
    assert exit_code(write_beyond_the_limit, path, with_torch) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_folder_has_one_writer_until_its_process_ends(tmp_path):
    folder = tmp_path / "run"
    with held(folder) as other:
        message = f"run is in use by another training, process {other.pid}: wait for it, or choose another output$"
        for _ in range(2):
            with pytest.raises(BlockingIOError, match=message), only_writer(folder):
                pass
        (folder / ".last.pt.tmp").touch()
    with only_writer(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        assert (folder / ".lock").read_text() == f"{os.getpid()}\n"
