"""What is beside the weights of an export: its model card; and its way to the hub of Hugging Face."""

import dataclasses
import math
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData, constants, get_token
from huggingface_hub.utils import validate_repo_id

from gh_downstream import __version__
from gh_downstream.files import write_atomically
from gh_downstream.reporting import escape_markdown
from gh_downstream.training.checkpoint import evaluated
from gh_downstream.training.config import config_dict
from gh_downstream.training.metrics import metrics_table

_MARK = "Written by `gh-downstream export`."
_LEFT_OUT = {"output", "wandb", "workers"}
_SECRET = re.compile("token|secret|passw|credential|api_?key", re.IGNORECASE)
# A path from the root, from a home or out of the folder; what says how to read it may come before, as in hf:/models.
_ELSEWHERE = re.compile(r"(?:(?<=^)|(?<=[\s:,=]))(?:~[^/\s]*/|/(?=\S)|\.\./|[A-Za-z]:[\\/]|\\\\).*", re.DOTALL)
_PACKAGES = ("torch", "torchvision", "accelerate", "transformers", "open_clip_torch", "timm", "peft")


def write_card(
    folder: Path,
    config: Any,
    checkpoint: Path,
    model: str,
    task: str,
    library: str,
    pipeline: str | None,
    loading: str,
    repository: str | None = None,
    since: str = "",
) -> None:
    """Write the ``README.md`` of an export, with the metadata that the hub reads; before the weights.

    The configuration has of paths elsewhere on this machine the last name alone, of addresses no password and no query,
    and no secrets. No licence is named: it follows from those of the first weights and of the data.

    Args:
        folder: Folder of the export.
        config: The configuration, with source, target and validation sets.
        checkpoint: Where the weights are from; it says what they reach, if they were evaluated.
        model: What the model starts from, as the configuration names it.
        task: The task of the evaluation, as the hub calls it.
        library: The library that loads the export, as the hub calls it.
        pipeline: What the hub takes the model for; None for nothing.
        loading: Lines of Python that load the export.
        repository: Of the hub, from which they do so; None for the folder that they run in.
        since: What was done to the weights since, so that what the checkpoint says does not hold of them.

    Raises:
        ValueError: The folder has a ``README.md`` that is no such card.
    """
    path = folder / "README.md"
    if path.exists() and not _is_card(path):
        raise ValueError(f"{path} is no card of an export: choose another --output, or move it away")
    step, metrics = evaluated(checkpoint)
    metrics = {} if since else metrics
    name, content, weighting = public(model), public(config_dict(config)), config.harmonization.weighting
    finite = ((*key.rpartition("/"), round(value, 4)) for key, value in metrics.items() if math.isfinite(value))
    results = [EvalResult(task, of, of, metric, value) for of, _, metric, value in finite]
    data = ModelCardData(
        base_model=_repository(model),
        library_name=library,
        pipeline_tag=pipeline,
        tags=["domain-adaptation", "gradient-harmonization", "gh_downstream"],
        model_name=name,
        eval_results=results or None,
    )
    trained = "Trained" + ("" if step is None else f" for {step} steps") + (since and f", then {since}")
    how = "without harmonization" if weighting == "none" else f"with the weighting {weighting}"
    title = f"{name}, {'adapted' if content['target'] else 'trained'} {how}"
    sets = {"source": config.source, "target": config.target}
    sets |= {f"validation {of}": found for of, found in config.validation.items()}
    versions = {"gh_downstream": __version__, "python": platform.python_version()} | _installed()
    text = [
        f"# {escape_markdown(title)}",
        f"{trained}, by gh_downstream, Gradient Harmonization for PyTorch "
        f"([arXiv 2408.00288](https://arxiv.org/abs/2408.00288)). {_MARK}",
        "**Licence**: not stated here. It follows from those of the first weights and of the data.",
        "## Use" + ("" if repository else "\n\nFrom within this folder:"),
        f"```python\n{loading}\n```",
        "## Data",
        "\n".join(f"- {escape_markdown(f'{of}: {_listed(_given(found))}')}" for of, found in sets.items() if found),
        "## Figures",
        metrics_table(f"after step {step}", metrics).to_markdown() if metrics else "These weights were not evaluated.",
        "## Configuration",
        f"```yaml\n{yaml.safe_dump(content, sort_keys=False)}```",
        "## Versions",
        _listed(versions),
    ]
    write_atomically(path, f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(block.rstrip() for block in text) + "\n")


def check_upload(name: str, folder: Path) -> None:
    """Check, before anything is written, what can be checked of an upload that :func:`upload` will make.

    Raises:
        ValueError: The name is none, or the folder has files that are of no export, and would go with it.
        OSError: The hub is not to be reached, or there is no token for it.
    """
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ValueError(f"--push-to-hub: {' '.join(str(error).split())}") from None
    if "/" not in name:
        raise ValueError(f"--push-to-hub {name}: give OWNER/NAME")
    if folder.is_dir() and any(folder.iterdir()) and not _is_card(folder / "README.md"):
        raise ValueError(f"{folder} has other files, which would be uploaded too: choose a new --output")
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"--push-to-hub {name}: HF_HUB_OFFLINE keeps the hub out of reach: unset it")
    if get_token() is None:
        raise OSError(f"--push-to-hub {name}: there is no token for the hub: run 'hf auth login', or set HF_TOKEN")


def upload(name: str, folder: Path) -> str:
    """Upload a folder to a repository of the hub, which is made as a private one, and return its address.

    Raises:
        OSError: The hub is out of reach, or refuses it.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # also of the library underneath, another in late versions
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{folder} is written, but cannot be uploaded to {name}: {reason}") from error
    return str(address)


def public(value: Any) -> Any:
    """Return a configuration without what is of this machine alone, or secret."""
    if isinstance(value, Mapping):
        return {
            key: "(left out)" if isinstance(found, str) and _SECRET.search(key) else public(found)
            for key, found in value.items()
            if key not in _LEFT_OUT
        }
    if isinstance(value, list):
        return [public(found) for found in value]
    if not isinstance(value, str):
        return value
    if "://" in value and (address := urlsplit(value)).scheme != "file":
        return urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment=""))
    value = value.removeprefix("file://")
    return _ELSEWHERE.sub(lambda found: PurePosixPath(found[0].replace("\\", "/")).name, value)


def _is_card(path: Path) -> bool:
    return path.is_file() and _MARK in path.read_text(errors="replace")


def _repository(model: str) -> str | None:
    """The repository of the hub that a model is from, if it is from one."""
    name = model.removeprefix("openclip:hf-hub:").removeprefix("hf:")
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def _given(data: Any) -> dict[str, Any]:
    """The values of a section that are not its defaults."""
    values = {field.name: (getattr(data, field.name), field.default) for field in dataclasses.fields(data)}
    return public({name: value for name, (value, default) in values.items() if value != default})


def _installed() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
