"""Checkpoints of Detectron2 that are written whole or not at all, fit the model, and are read without running code."""

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from gh_downstream.files import atomic_file, write_atomically
from gh_downstream.training.checkpoint import CheckpointError

# Other files lack them, and nothing comes of it.
_OPTIONAL = ("num_batches_tracked", "pixel_mean", "pixel_std", "_extra_state")

AFTER_DIVERGENCE = (
    "if the data are right, lower SOLVER.BASE_LR, or set SOLVER.CLIP_GRADIENTS or GH.MAX_WEIGHT, in another "
    "OUTPUT_DIR, where MODEL.WEIGHTS may be a checkpoint of this one"
)


class WholeCheckpointer(DetectionCheckpointer):
    """A ``DetectionCheckpointer`` whose files are whole, finite, and of the model that takes them.

    It reads what its base reads: checkpoints of Detectron2, ``.pkl`` files of its model zoo and of Caffe2, ``.pyth`` of
    pycls, state dicts of ``torch.save``; but tensors, NumPy arrays and plain values alone, so that no code in a file is
    run.

    Args:
        model: The model.
        save_dir: ``OUTPUT_DIR``.
        evaluates: What is loaded is evaluated as it is, so that all of the detector has to be there. Otherwise it is
            what a training begins with: at least half of the backbone, as the ImageNet weights have it.
        **checkpointables: As of the base.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, evaluates: bool = False, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.evaluates = evaluates
        self._resuming = False
        self._file = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``NAME.pth``, and its name into ``last_checkpoint``; each has all of its content, or is as before.

        Raises:
            ValueError: A weight is not finite. Nothing is written then.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **state, **kwargs}
        if bad := [key for key, value in content["model"].items() if not value.isfinite().all()]:
            raise ValueError(
                f"{name}: {bad[0]} is not finite, so it is not saved, and those before it stay; {AFTER_DIVERGENCE}"
            )
        self.logger.info("saving %s", name)
        with atomic_file(Path(self.save_dir) / f"{name}.pth") as file:
            torch.save(content, file)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the checkpoint that ``--resume`` takes."""
        write_atomically(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load as the base does.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: It is damaged, holds something else, or does not fit the model.
        """
        self._resuming = resume and self.has_checkpoint()
        if self._resuming and not os.path.isfile(self.get_checkpoint_file()):
            raise CheckpointError(
                f"{os.path.join(self.save_dir, 'last_checkpoint')} names {self.get_checkpoint_file()}, which is not "
                "there: write the name of another checkpoint of this folder into it, or delete it to start anew"
            )
        return super().resume_or_load(path, resume=resume)

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._file = filename
        if filename.endswith(".pkl"):
            content = _checked(filename, _read_pickle(filename))
            if "model" not in content or "__author__" not in content:  # of Caffe2
                blobs = _checked(filename, content.get("blobs", content))
                weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
                content = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        elif filename.endswith(".pyth"):  # of pycls
            weights = self._torch_load(filename).get("model_state")
            content = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        else:
            content = super()._load_file(filename)
        weights = _checked(filename, content.get("model"))
        if not weights or not all(isinstance(value, (Tensor, np.ndarray)) for value in weights.values()):
            raise CheckpointError(f"{filename} holds no weights: neither a checkpoint nor a state dict")
        if self._resuming and not {"trainer", "iteration"} <= content.keys():
            raise CheckpointError(
                f"{filename} holds weights, but no training to resume: start from it with MODEL.WEIGHTS {filename} and "
                "another OUTPUT_DIR"
            )
        return content

    def _torch_load(self, f: str) -> Any:
        try:
            if zipfile.is_zipfile(f) and (broken := zipfile.ZipFile(f).testzip()):  # torch.load compares no checksum
                raise ValueError(f"the checksum of {broken} in it is another one")
            return _checked(f, torch.load(f, map_location="cpu", weights_only=True))
        except CheckpointError:
            raise
        except Exception as error:  # a damaged file raises whatever its bytes happen to lead to
            others = self.get_all_checkpoint_files() if self._resuming else []
            names = ", ".join(sorted(os.path.basename(path) for path in others if path != f))
            remedy = f"; to go on from another one ({names}) write its name into last_checkpoint"
            raise CheckpointError(
                f"{f} is damaged, or holds more than tensors and plain values, which may run code and is not read"
                f"{remedy if names else ''}"
            ) from error

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        missing = {*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)}
        needed = [name for name in self.model.state_dict() if not name.endswith(_OPTIONAL)]
        allowed = 0.0
        if self.evaluates:
            needed = [name for name in needed if not name.startswith("alignment.")]
        elif not self._resuming:
            needed = [name for name in needed if name.startswith("backbone.")] or needed
            allowed = 0.5
        lacking = [name for name in needed if name in missing]
        if len(lacking) > allowed * len(needed):
            part = "the backbone" if allowed else "the model"
            raise CheckpointError(
                f"{self._file} lacks {len(lacking)} of the {len(needed)} tensors of {part}, such as {lacking[0]}, or "
                "has them in another shape: it belongs to another model or configuration"
            )
        return incompatible


def _checked(path: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no weights: neither a checkpoint nor a state dict")
    return content


def _read_pickle(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()  # as Python 2 wrote them
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # as above
        raise CheckpointError(f"{path} is damaged, or is no pickle") from error


class _Type:
    """The type of an array's elements, numbers and truth values alone: the bytes of an object are an address."""

    def __init__(self, name: str, *_: Any) -> None:
        self.plain = np.dtype(name)
        if self.plain.kind not in "biufc":
            raise CheckpointError(f"an array of {name} is not read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.plain = self.plain.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that takes its content from a pickle as NumPy's does, of the types above alone."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, fortran, content = state
        super().__setstate__((version, shape, kind.plain, fortran, content))


_NUMPY: dict[str, Callable[..., Any]] = {
    "ndarray": _Array,
    "dtype": _Type,
    "_reconstruct": lambda *_: np.empty(0).view(_Array),
    "_frombuffer": lambda data, kind, shape, order: np.frombuffer(data, kind.plain).reshape(shape, order=order),
    "scalar": lambda kind, data: np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, kind.plain)[0],
}

_PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    # Bytes, as Python 3 writes them for Python 2.
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
    ("__builtin__", "bytes"): lambda: b"",
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, text, numbers and NumPy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the file; nothing that a name could lead to is imported."""
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        raise CheckpointError(
            f"{module}.{name} in it may run code, so the file is not read; arrays and plain values are"
        )
