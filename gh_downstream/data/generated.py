"""Folders of generated data: each says in its manifest what it was made with, and nothing else is overwritten."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gh_downstream.files import write_atomically

MANIFEST = "manifest.json"
"""File at the root of generated data."""


def claim(root: Path, name: str, manifest: Mapping[str, Any]) -> None:
    """Make sure that a folder is the generator's to write to, and write the manifest where there is none.

    Args:
        root: New or empty folder, or one that was made, in part or wholly, with the same manifest.
        name: What the data are called, for messages.
        manifest: What JSON can hold; under ``arguments`` all that the files depend on.

    Raises:
        ValueError: The folder holds anything else; nothing is touched then.
    """
    path = root / MANIFEST
    if not path.is_file():
        if root.exists() and not (root.is_dir() and not any(root.iterdir())):
            raise ValueError(f"{root} holds something else than {name}; choose a new or empty folder")
        write_atomically(path, json.dumps(manifest, indent=2))
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); choose another folder") from error
    if found != manifest:
        raise ValueError(
            f"{root} was made with {found.get('arguments') if isinstance(found, dict) else None}, "
            f"not with {manifest['arguments']}; choose another folder, or delete that one"
        )
