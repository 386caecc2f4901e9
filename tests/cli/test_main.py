"""The command as a whole: its help, its exit codes, and what a mistake looks like."""

import os
import subprocess
import sys

import pytest
import torch
import typer

from gh_downstream import __version__
from gh_downstream.cli import train
from gh_downstream.cli.main import run
from tests.retrieval.encoders.tiny_models import transformers_folder

COMMANDS = [
    [],
    ["train"],
    ["evaluate"],
    ["export"],
    ["search"],
    ["benchmark"],
    ["compare"],
    ["demo"],
    ["data"],
    ["data", "make"],
    ["data", "make", "streets"],
    ["data", "make", "scenes"],
    ["data", "check"],
    ["data", "fog"],
    ["data", "features"],
    ["configs"],
    ["configs", "list"],
    ["configs", "show"],
    ["configs", "explain"],
]


def test_the_version_is_said(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"gh-downstream {__version__}\n"


def test_what_other_libraries_tell_of_their_steps_is_left_out():
    said = "logging.info('a step'); logging.warning('a fault'); logging.getLogger('gh_downstream.x').info('ours')"
    program = f"import logging; from gh_downstream.cli.main import run; run(['configs', 'list']); {said}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["a fault", "ours"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_is_short_and_has_an_example(words, capsys):
    assert run([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: {' '.join(['gh-downstream', *words])} " in shown
    assert len(shown.splitlines()) < 60
    assert ("Commands:" in shown) != (f"Example: gh-downstream {' '.join(words)}" in shown)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["trian"], "trian"),
        (["train"], "--config"),
        (["train", "--config", "digits", "--stpes", "3"], "--stpes"),
        (["train", "--config", "retrieval/nothing"], "retrieval/nothing"),
        (["train", "--config", "a", "--engine", "yolo"], "yolo"),
        (["configs", "show"], "config"),
    ],
)
def test_a_mistake_is_named_and_ends_with_code_2(words, named, capsys):
    assert run(words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert named in line.lower()  # typer 0.18 writes an argument in capitals
    assert not captured.out


@pytest.mark.parametrize("words", [[], ["data"], ["data", "make"]], ids=" ".join)
def test_a_group_alone_shows_its_help_and_ends_with_code_2(words, capsys):
    assert run(words) == 2
    assert "Commands:" in capsys.readouterr().err


def test_names_in_errors_and_logs_do_not_command_the_terminal(failing, capsys):
    failing(ValueError("a\x1b[2J\u2028.png is no image\nand b.png"))
    assert run(["train", "--config", "x"]) == 2
    assert capsys.readouterr().err == "error: a\\x1b[2J\\u2028.png is no image\nand b.png\n"
    command = "import logging; from gh_downstream.cli.main import run; run(['configs']); logging.warning('a\\x1b[2J')"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == "a\\x1b[2J\n"


@pytest.fixture
def failing(monkeypatch):
    """Have every training fail in a way."""

    def fail_with(error):
        def fail(*_):
            raise error

        monkeypatch.setattr(train, "_found", fail)

    return fail_with


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, ImportError])
def test_an_error_is_one_line_and_with_debug_a_trace(failing, error, capsys):
    failing(error("images/a.png: not an image"))
    assert run(["train", "--config", "x"]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: images/a.png: not an image"]
    with pytest.raises(error, match=r"a\.png"):
        run(["train", "--config", "x", "--debug"])


def test_of_a_library_that_lacks_another_both_are_named(failing, capsys):
    error = ImportError("encoder 'openclip' needs open_clip: pip install 'gh_downstream[retrieval]'")
    error.__cause__ = ModuleNotFoundError("No module named 'wcwidth'")
    failing(error)
    assert run(["train", "--config", "x"]) == 2
    assert capsys.readouterr().err == f"error: {error} (No module named 'wcwidth')\n"


def test_a_mistake_of_the_package_keeps_its_trace(failing):
    failing(KeyError("nothing of the user's"))
    with pytest.raises(KeyError):
        run(["train", "--config", "x"])


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (typer.Abort(), 130), (typer.Exit(1), 1), (SystemExit("no disk"), 2), (None, 0)],
)
def test_the_exit_code(failing, error, code):
    if error is not None:
        failing(error)
    assert run(["train", "--config", "x"] if error is not None else ["configs", "list"]) == code


def python(code, *arguments):
    return subprocess.run([sys.executable, *code, *arguments], capture_output=True, text=True, check=False)


def test_without_typer_a_line_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; sys.argv[1:] = ['train']; import gh_downstream.cli.__main__"
    done = python(["-c", code])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "pip install" in line


@pytest.mark.parametrize(
    ("failure", "code", "said"), [("ValueError('a.png')", 2, "error: a.png\n"), ("KeyError('x')", 1, "KeyError: 'x'\n")]
)
def test_of_several_processes_one_that_fails_ends_at_once_with_its_message(monkeypatch, failure, code, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    waits = "import atexit, time; atexit.register(time.sleep, 600)"
    fails = (
        f"from gh_downstream.comparison import engines; engines.engine_of = lambda path: exec({f'raise {failure}'!r})"
    )
    call = "from gh_downstream.cli.main import main; main('train', '--config', 'retrieval/mini')"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([waits, fails, call])], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr.endswith(said)) == (code, True)


def test_it_is_a_module_for_launchers():
    done = python(["-m", "gh_downstream.cli"], "configs", "list")
    assert done.returncode == 0, done.stderr
    assert "classification/digits" in done.stdout


LOAD = "from gh_downstream.retrieval.encoders import build_encoder; build_encoder('hf:{folder}')"


@pytest.mark.parametrize("at_the_command_line", [True, False])
def test_bars_and_reports_of_libraries_are_left_out_at_the_command_line_alone(
    tmp_path, monkeypatch, at_the_command_line
):
    safetensors = pytest.importorskip("safetensors.torch")
    folder = transformers_folder(tmp_path / "clip", "clip")
    weights = safetensors.load_file(folder / "model.safetensors")
    weights |= {"stranger.weight": torch.zeros(3)}
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    code = LOAD.format(folder=folder)
    if at_the_command_line:
        code = f"from gh_downstream.cli.main import run; run(['configs', 'list']); {code}"
    done = python(["-c", code])
    assert done.returncode == 0, done.stderr
    shown = {"stranger" in done.stderr, "Loading weights" in done.stderr}
    assert shown == ({False} if at_the_command_line else {True})


def test_what_the_user_says_of_bars_and_reports_holds(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    assert run(["configs", "list"]) == 0
    assert (os.environ["TRANSFORMERS_VERBOSITY"], os.environ["HF_HUB_DISABLE_PROGRESS_BARS"]) == ("info", "0")


def test_an_explanation_is_without_warnings_of_libraries():
    done = python(["-m", "gh_downstream.cli"], "configs", "explain", "training.steps")
    assert (done.returncode, done.stderr) == (0, "")
