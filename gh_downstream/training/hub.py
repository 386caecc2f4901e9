"""Models of transformers, from a folder or from the hub of Hugging Face, where it can be reached at all."""

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants
from huggingface_hub.utils import get_session

T = TypeVar("T")
logger = logging.getLogger(__name__)

_WAIT = 5.0  # seconds until a hub that says nothing counts as out of reach


@lru_cache
def look_for_hub() -> None:
    """Have the libraries look on this machine alone if the hub is out of reach: for each file they would try a minute.

    That is what ``HF_HUB_OFFLINE=1`` does. It holds for this process.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_WAIT)
    except Exception as error:  # of the library that the session is made with, which is another one in late versions
        constants.HF_HUB_OFFLINE = True
        logger.warning("%s is out of reach, so what is on this machine has to do (%s)", constants.ENDPOINT, error)


def places(*own: object) -> str:
    """Where the libraries have looked, for messages."""
    looked = ", ".join(map(str, (*own, constants.HF_HUB_CACHE)))
    return looked if constants.HF_HUB_OFFLINE else f"{looked}, then online"


def load_configuration(spec: str, load: Callable[..., T], **options: Any) -> T:
    """Load the configuration of a model, the first of its parts, as :func:`load_part` does.

    Raises:
        FileNotFoundError: A folder has none.
    """
    folder = Path(spec.removeprefix("hf:"))
    # transformers takes any other text for the identifier of a repository.
    if (folder.is_absolute() or folder.is_dir()) and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder.resolve()}, the folder of '{spec}'")
    if not folder.is_dir():
        look_for_hub()
    return load_part(spec, "configuration (config.json)", load, **options)


def load_part(spec: str, part: str, load: Callable[..., T], **options: Any) -> T:
    """Load a part of a model with a function of transformers, and without code of the repository's own.

    Args:
        spec: A folder that ``save_pretrained`` wrote, or a repository of the hub; ``hf:`` may stand before it.
        part: What errors call the part.
        load: The function, such as ``AutoModel.from_pretrained``.
        options: Of the function.

    Raises:
        ValueError, ImportError, FileNotFoundError: It cannot be loaded, something is not installed, or it is not there;
            with its name.
    """
    name = spec.removeprefix("hf:")
    try:
        return load(name, trust_remote_code=False, **options)
    except (ValueError, ImportError) as error:  # code of the repository's own, an unknown kind, a missing library
        kind = ImportError if isinstance(error, ImportError) else ValueError
        raise kind(f"{part} of '{spec}' cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    except (OSError, TypeError) as error:  # transformers 4 opens the path None where a tokenizer has no files
        folder = Path(name).resolve()
        looked = folder if folder.is_dir() else places(f"{folder} (no such folder)")
        raise FileNotFoundError(
            f"{part} of '{spec}' not found: looked in {looked} ({str(error).strip().splitlines()[0]})"
        ) from error
