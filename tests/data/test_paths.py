import os

import pytest

from gh_downstream.data.paths import check_regular, path_in, printable


def test_only_a_regular_file_is_one(tmp_path):
    file, pipe, folder = tmp_path / "file", tmp_path / "pipe", tmp_path / "folder"
    file.write_text("")
    os.mkfifo(pipe)
    folder.mkdir()
    (tmp_path / "link").symlink_to(file)
    check_regular(file)
    check_regular(tmp_path / "link")
    for path in (pipe, folder, "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            check_regular(path)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "missing")


@pytest.mark.parametrize("name", ["../a.png", "b/../../a.png", "/etc/passwd", "..", "{root}x/a.png"])
def test_a_path_may_leave_its_folder_where_the_user_says_so_alone(tmp_path, name):
    name = name.format(root=tmp_path)
    assert path_in(tmp_path, name, True, "t.json") == str(tmp_path / name)
    with pytest.raises(ValueError, match=r"^t.json: the image '.*' is not in .*outside_root=true") as error:
        path_in(tmp_path, name, False, "t.json")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["a.png", "b/c/a.png", "b/../a.png", "..a.png", "{root}/a.png"])
def test_a_path_in_its_folder_is_taken(tmp_path, name):
    name = name.format(root=tmp_path)
    assert path_in(tmp_path, name, False, "t.json") == str(tmp_path / name)


def test_control_characters_are_escaped():
    assert printable("Füße 蓝.png") == "Füße 蓝.png"
    assert printable("a\n\x1b[2J\udcff'.png") == r"a\n\x1b[2J\udcff'.png"
