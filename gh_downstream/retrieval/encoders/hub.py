"""The hub of Hugging Face, where it can be reached at all."""

import logging
from functools import lru_cache

from huggingface_hub import constants
from huggingface_hub.utils import get_session

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
