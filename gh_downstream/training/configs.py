"""The configurations that this package ships, by name: those of our own loop and those for Detectron2."""

import difflib
import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
# Installed, the folder is the package gh_downstream.configs; in a checkout it lies beside the package.
FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""Where they lie."""


def find_config(name: str | Path) -> Path:
    """Return the file of a configuration.

    Args:
        name: Path of a file, or the name of a configuration of this package, such as ``retrieval/mini``, with or
            without ``.yaml``.

    Raises:
        FileNotFoundError: There is neither; the message has the names that are most like it.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = FOLDER / f"{str(name).removesuffix('.yaml')}.yaml"
    if packaged.is_file():
        return packaged
    similar = difflib.get_close_matches(str(name).removesuffix(".yaml"), list_configs(), n=3, cutoff=0.5)
    cure = f"did you mean {', '.join(similar)}?" if similar else "gh-downstream configs list names those there are"
    raise FileNotFoundError(f"{name}: no such file, and no configuration of this package; {cure}")


def training_of(output: str | Path) -> str:
    """Say what makes an output folder, where a configuration of this package trains into it; else nothing."""
    named = re.compile(rf"^(?:output|OUTPUT_DIR): *[\"']?{re.escape(str(output))}[\"']?\s*$", re.MULTILINE)
    names = [name for name in list_configs() if named.search(find_config(name).read_text(encoding="utf-8"))]
    return f"make it with: gh-downstream train --config {names[0]}" if names else ""


def list_configs() -> list[str]:
    """Return the names of the configurations of this package, sorted; their first part is the workload."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
