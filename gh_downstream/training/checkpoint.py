"""Checkpoints that are written whole or not at all, and read without running what is in them."""

import copy
import logging
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gh_downstream.files import atomic_file
from gh_downstream.training.config import ExperimentConfig, decisive_changes
from gh_downstream.training.configs import training_of

logger = logging.getLogger(__name__)

_FORMAT = "gh_downstream.training 1"
_OTHERS = "give last.pt, best.pt or a state dict"
COUNTER = "num_batches_tracked"  # which nothing depends on


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; the message names the file and what to do."""


def save_checkpoint(path: Path, state: Mapping[str, Any], kept: Path | None = None) -> None:
    """Write tensors and plain Python values atomically; the weights are ``model``, averaged ones ``average``.

    The file that was there before goes to ``kept``, if that is given.
    """
    with atomic_file(path, kept) as file:
        torch.save({"format": _FORMAT, **state}, file)


class CheckpointWriter:
    """Writes checkpoints in the background, each whole before the next is begun, while the training goes on.

    What it could not write is raised by the next call. As a context manager it ends with all on the disk.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, path: Path, state: Mapping[str, Any], kept: Path | None = None) -> None:
        """Copy a state into memory, and write it as :func:`save_checkpoint` does."""
        self.wait()
        self._writing = self._thread.submit(save_checkpoint, path, _copied(state), kept)

    def wait(self) -> None:
        """Wait until everything is on the disk; before anything that may fail, or forks.

        Raises:
            OSError: The file could not be written; the old one is as it was.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except OSError as lost:
            if error is None:
                raise
            logger.error("a checkpoint could not be written: %s", lost)


def _copied(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy on the CPU, in which tensors that are one in memory are one again."""
    copies: dict[Any, Tensor] = {}
    of_tensors: dict[int, Tensor] = {}
    for value in tree_leaves(state):
        if isinstance(value, Tensor):
            place = value.data_ptr(), value.dtype, value.shape, value.stride()
            if place not in copies:
                copies[place] = value.detach().to("cpu", copy=True)
            of_tensors[id(value)] = copies[place]
    return copy.deepcopy(state, of_tensors)


def load_checkpoint(path: Path, cure: str = _OTHERS) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_checkpoint` onto the CPU; the error about a damaged one ends in the cure.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or is something else.
    """
    content = _read(path, cure)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of gh_downstream")
    return content


def load_last(config: ExperimentConfig) -> dict[str, Any] | None:
    """Read the checkpoint that a training goes on from; None where there was none before.

    It is ``last.pt`` in the output folder, or ``previous.pt`` where that one is lost.

    Raises:
        CheckpointError: As :func:`load_checkpoint`; it belongs to another configuration; or only ``best.pt`` is left,
            which a new training would overwrite.
    """
    last, previous, best = (Path(config.output) / name for name in ("last.pt", "previous.pt", "best.pt"))
    if not last.exists() and previous.exists():
        logger.warning("%s is lost: the training goes on from %s", last, previous)
        last = previous
    if not last.exists() and best.exists():
        raise CheckpointError(
            f"{best} is there and {last} is lost: choose another output, where training.init_from={best} starts from "
            "its weights, or move it away to start anew"
        )
    if not last.exists():
        return None
    cure = "restore it, or delete it, and a training goes on from the previous.pt beside it, or starts anew without one"
    state = load_checkpoint(last, cure)
    if lacking := sorted({"config", "step", "model", "optimizer"} - state.keys()):
        raise CheckpointError(f"{last} lacks {', '.join(lacking)}: a training cannot go on from it")
    if differing := decisive_changes(state["config"], config):
        raise CheckpointError(
            f"{last} belongs to another configuration: {differing}; choose another output, where "
            f"training.init_from={last} starts from its weights, or delete the folder to start anew"
        )
    return state


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Start a model from the weights of an earlier stage, as :func:`fill_weights` and :func:`read_weights` say."""
    state = read_weights(path)
    missing = fill_weights(model, state, str(path))
    own = model.state_dict()
    if unused := [name for name in state if name not in own]:
        logger.warning("%s has %s, which the model lacks", path, _listed(unused))
    return missing


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name onto the CPU.

    Args:
        path: A checkpoint, whose averaged weights are taken where it has them, or a state dict that ``torch.save`` has
            written, alone or as ``model`` in a dictionary.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or holds no weights.
    """
    content = _read(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if isinstance(content, dict) and content.get("average") is not None:
        logger.info("%s: the averaged weights are taken", path)
        state = content["average"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is neither a checkpoint nor a state dict")
    return state


def evaluated(path: Path) -> tuple[int | None, dict[str, float]]:
    """Return the step of a checkpoint's weights, and what they reach: nothing where it does not say so of just these.

    ``best.pt`` says so, and the ``last.pt`` of a finished run; the step of a file of others is None.
    """
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return None, {}
    finished = content["step"] == content["config"]["training"]["steps"] and content.get("unevaluated") is None
    return content["step"], content["metrics"] if finished or "optimizer" not in content else {}


def fill_weights(module: nn.Module, state: Mapping[str, Tensor], source: str, network: str = "the model") -> list[str]:
    """Copy tensors into a module where it has one of the same name and shape; log how many, and which were not found.

    Args:
        module: The module.
        state: Tensors by name. Counters of batches, which old files lack, may be missing.
        source: Where they come from, for log and errors.
        network: The module, as log and errors call it.

    Returns:
        Names of the module that ``state`` lacks, or has in another shape, such as a head for another number of classes.

    Raises:
        CheckpointError: They fill less than half of the module's tensors: they are those of another model.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.endswith(COUNTER)}
    # load_state_dict refuses another shape even if not strict.
    fitting = {name: value for name, value in state.items() if name not in own or value.shape == own[name].shape}
    missing = [name for name in own if name not in fitting]
    if 2 * len(missing) > len(own):
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the {len(own)} tensors of {network}, or has them in another shape: "
            f"{_listed(_compared(missing, state, own))}; it belongs to another model"
        )
    module.load_state_dict(fitting, strict=False)
    logger.info("loaded %d of %d tensors of %s from %s", len(own) - len(missing), len(own), network, source)
    if missing:
        listed = _listed(_compared(missing, state, own))
        logger.warning("%s lacks %s, or has other shapes: they keep their initial values", source, listed)
    return missing


def load_all_weights(model: nn.Module, path: Path, prefix: str = "") -> None:
    """Take the weights of a trained model, to evaluate or to export it, as :func:`load_weights`, but all of them.

    Args:
        model: The model.
        path: The file.
        prefix: Beginning of the names that the file has to have; the rest of the model is not used.

    Raises:
        CheckpointError: The file lacks one of these tensors, has it in another shape, or has others of such names.
    """
    state, own = read_weights(path), model.state_dict()
    lacking = _compared([name for name in fill_weights(model, state, str(path)) if name.startswith(prefix)], state, own)
    beside = [name for name in state if name.startswith(prefix) and name not in own and not name.endswith(COUNTER)]
    if lacking or beside:
        wrong = [f"lacks {_listed(lacking)} of the model, or has other shapes"] if lacking else []
        wrong += [f"has {_listed(beside)}, which the model lacks"] if beside else []
        raise CheckpointError(f"{path} {', and '.join(wrong)}: it belongs to another configuration")


def _read(path: Path, cure: str = _OTHERS) -> Any:
    if not path.is_file():
        beside = sorted(file.name for file in path.parent.glob("*.pt"))
        found = f"there are {', '.join(beside)}" if beside else training_of(path.parent)
        raise FileNotFoundError(f"no such checkpoint: {path}" + (f"; {found}" if found else ""))
    try:
        if zipfile.is_zipfile(path) and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(path).namelist()):
            raise CheckpointError(
                f"{path} is a TorchScript archive, which is a program: save the weights in it with "
                "torch.save(torch.jit.load(OLD).state_dict(), NEW), if you trust it"
            )
        content = torch.load(path, map_location="cpu", weights_only=True)
        # torch writes checksums, and does not look at them. Those of other people's files may be left out.
        own = isinstance(content, dict) and content.get("format") == _FORMAT
        if own:
            with zipfile.ZipFile(path) as archive:
                if faulty := archive.testzip():
                    raise zipfile.BadZipFile(f"the checksum of {faulty} is wrong")
        return content
    except CheckpointError:
        raise
    except Exception as error:  # A damaged file raises whatever its bytes happen to lead to.
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {cure}") from error


def _compared(names: Sequence[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The names, with both shapes where these differ."""

    def shapes(name: str) -> str:
        return f" ({list(state[name].shape)} there, {list(own[name].shape)} here)" if name in state else ""

    return [name + shapes(name) for name in names]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
