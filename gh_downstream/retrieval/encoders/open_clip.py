"""Dual encoders of open_clip (https://github.com/mlfoundations/open_clip)."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from PIL.Image import Image
from torch import Tensor

from gh_downstream.files import write_atomically
from gh_downstream.retrieval.encoders.lora import merged_state_dict
from gh_downstream.retrieval.encoders.protocol import DualEncoder, check_vocabulary, checkpoint_transformers

try:
    import open_clip
    from huggingface_hub.utils import validate_repo_id
    from open_clip.hf_configs import arch_dict
    from open_clip.hf_model import HFTextEncoder
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors.torch import save

    from gh_downstream.training.hub import look_for_hub, places
except ImportError as error:
    raise ImportError("encoder 'openclip' needs open_clip: pip install 'gh_downstream[retrieval]'") from error

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_HERE = "."

logger = logging.getLogger(__name__)


class OpenCLIPEncoder(DualEncoder):
    """The towers of an open_clip model, with its preprocessing and its tokenizer.

    Args:
        model: Built with ``force_custom_text=True``, so that the text tower is a module of its own.
        model_cfg: open_clip's configuration of the model.
        tokenizer: open_clip's tokenizer of the model.

    Raises:
        ValueError: The images of the model are not square.
    """

    library = "open_clip"

    def __init__(self, model: Any, model_cfg: dict[str, Any], tokenizer: Any) -> None:
        size = model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise ValueError(f"open_clip models of square images are supported, this one has {height} x {width}")
        super().__init__(model.visual, model.text, model.logit_scale, model.logit_bias, height, model_cfg["embed_dim"])
        self._model_cfg = deepcopy(model_cfg)
        self._preprocess_cfg = dict(model.visual.preprocess_cfg)
        self._tokenizer = tokenizer
        preprocess = PreprocessCfg(**self._preprocess_cfg)
        self._transforms = {train: image_transform_v2(preprocess, is_train=train) for train in (False, True)}

    def preprocess(self, image: Image, train: bool) -> Tensor:
        """Return open_clip's pixels ``[3, H, W]``; with ``train``, of a random crop of 90 % of the area or more."""
        return self._transforms[train](image)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids ``[N, L]``, int64, of texts, cut at the context length of the model."""
        return self._tokenizer(list(texts))

    def cut(self, texts: Sequence[str]) -> int:
        """Return how many texts :meth:`tokenize` cuts."""
        inner = getattr(self._tokenizer, "tokenizer", None)  # of transformers
        if inner is None:
            lengths = [len(self._tokenizer.encode(text)) + 2 for text in texts]  # with those of start and end
        else:
            clean = getattr(self._tokenizer, "clean_fn", str)
            lengths = [len(ids) for ids in inner([clean(text) for text in texts], verbose=False).input_ids]
        return sum(length > self._tokenizer.context_length for length in lengths)

    def _checkpoint(self) -> None:
        # Non-reentrant in open_clip, and in timm from 1.0 on.
        towers: list[Any] = [self.image, self.text]
        for tower in towers:
            if isinstance(tower, HFTextEncoder):
                checkpoint_transformers(tower.transformer)
            else:
                tower.set_grad_checkpointing()

    def export(self, folder: str | Path, repository: str | None = None) -> None:
        """Write a folder that ``open_clip.create_model("local-dir:FOLDER")`` loads; the weights file loads alone too.

        Of a text tower of transformers the folder has the configuration too. :func:`load_open_clip` finds it there, and
        open_clip itself where it is named: in the repository of the hub, or in the folder that it runs in.
        """
        folder = Path(folder)
        model_cfg = deepcopy(self._model_cfg)
        if isinstance(self.text, HFTextEncoder):
            name = repository or _public(model_cfg["text_cfg"]["hf_model_name"])
            model_cfg["text_cfg"] |= {"hf_model_name": name, "hf_tokenizer_name": name}
            self.text.config.save_pretrained(folder)
            if name == _HERE:
                logger.info("%s: open_clip itself loads it from within: cd there, and give it local-dir:.", folder)
        config = {"model_cfg": model_cfg, "preprocess_cfg": self._preprocess_cfg}
        write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        # A plain CLIP keeps the parameters of its text tower at the top.
        has_text = self._model_cfg.get("custom_text", False) or "hf_model_name" in self._model_cfg["text_cfg"]
        prefixes = {"image.": "visual.", "text.": "text." if has_text else ""}
        weights = {name: x.cpu().contiguous() for name, x in merged_state_dict(self, prefixes).items()}
        write_atomically(folder / WEIGHTS_FILE, save(weights))
        if hasattr(self._tokenizer, "save_pretrained"):
            self._tokenizer.save_pretrained(str(folder))

    def loading(self, repository: str | None) -> str:
        """Return the lines that load an export, with its preprocessing and its tokenizer."""
        name = f"hf-hub:{repository}" if repository else "local-dir:."
        return (
            f'import open_clip\n\nmodel, _, preprocess = open_clip.create_model_and_transforms("{name}")\n'
            f'model, tokenizer = model.eval(), open_clip.get_tokenizer("{name}")'
        )


def load_open_clip(name: str, random: bool) -> OpenCLIPEncoder:
    """Return the encoder of ``MODEL[,TAG-or-FILE]``, ``local-dir:FOLDER`` or ``hf-hub:ORG/NAME``.

    With ``random`` the weights stay random, and need not be there.

    Raises:
        ValueError: The model or the tag is unknown, no weights are named, or open_clip's model is a captioning one.
        FileNotFoundError: The model, its weights or its tokenizer are not in the place that was looked in.
    """
    source = None
    if name.startswith("local-dir:"):
        model_cfg = _folder_config(Path(name.removeprefix("local-dir:")), random)
    elif name.startswith("hf-hub:"):
        model_cfg = _hub_config(name.removeprefix("hf-hub:"), random)
    else:
        name, _, source = name.partition(",")
        name = name.replace("/", "-")
        model_cfg = open_clip.get_model_config(name)
        if model_cfg is None:
            close = ", ".join(get_close_matches(name, open_clip.list_models())) or "see open_clip.list_models()"
            raise ValueError(f"open_clip has no model {name!r}; close ones: {close}")
        _check_weights(name, model_cfg, source, random)
    if "multimodal_cfg" in model_cfg:
        raise ValueError(f"open_clip model {name!r} also writes captions (CoCa): use one with two towers alone")
    original = deepcopy(model_cfg)
    folder = Path(name.removeprefix("local-dir:"))
    own = {}
    if name.startswith("local-dir:") and "hf_model_name" in model_cfg["text_cfg"] and _has_text_config(folder):
        own["text_cfg"] = model_cfg["text_cfg"] | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    try:
        model = open_clip.create_model(
            name,
            pretrained=source or None,
            load_weights=not random,
            require_pretrained=not random,
            pretrained_text=False,
            force_custom_text=True,
            **own,
        )
    except (RuntimeError, UnpicklingError) as error:
        if random:
            raise
        reason = " ".join(str(error).split())[:200]
        if "TorchScript" in reason:
            raise ValueError(
                f"{source} is a TorchScript archive, which is a program, as OpenAI publishes its weights: these are "
                f"'openclip:{name.removesuffix('-quickgelu')}-quickgelu,openai' too, without a program"
            ) from None
        raise ValueError(
            f"the weights {source or 'in the folder'} do not fit 'openclip:{name}': they are damaged, or of another "
            f"model ({reason})"
        ) from error
    missing = original["text_cfg"].get("hf_tokenizer_name")
    if missing and not name.startswith("local-dir:"):
        look_for_hub()
    # The tokenizer of open_clip itself takes no such option.
    options = {"trust_remote_code": False} if missing else {}
    try:
        # In a folder without tokenizer transformers 4 says OSError or TypeError, 5 ValueError; 5.0 makes an empty one.
        with _found(f"the tokenizer {missing!r} of open_clip model {name!r}", OSError, TypeError, ValueError):
            tokenizer = open_clip.get_tokenizer(name, **options)
            if missing:
                check_vocabulary(tokenizer.tokenizer)
    except FileNotFoundError as error:
        if not name.startswith("local-dir:"):
            raise
        raise FileNotFoundError(
            f"no tokenizer of transformers in {folder.resolve()}, the folder of 'openclip:{name}': save {missing!r} "
            "there"
        ) from error
    return OpenCLIPEncoder(model, original, tokenizer)


def _public(name: str) -> str:
    """An identifier of the hub; for a path, which is of this machine alone, the folder that the export is loaded in."""
    try:
        validate_repo_id(name)
    except ValueError:
        return _HERE
    return _HERE if Path(name).exists() else name


def _has_text_config(folder: Path) -> bool:
    """Whether the configuration of transformers in a folder is of a text model, and not of a whole CLIP."""
    path = folder / "config.json"
    return path.is_file() and json.loads(path.read_text()).get("model_type") in arch_dict


def _folder_config(folder: Path, random: bool) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG_FILE} in {folder.resolve()}, the folder of 'openclip:local-dir:{folder}'")
    if not random and not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.iterdir()):
        raise FileNotFoundError(
            f"no weights (*.safetensors, *.bin, *.pth) in {folder.resolve()}, the folder of "
            f"'openclip:local-dir:{folder}'; for random ones set init: random"
        )
    return _model_config(path)


def _hub_config(repository: str, random: bool) -> dict[str, Any]:
    look_for_hub()
    with _found(f"weights of 'openclip:hf-hub:{repository}'", Exception):  # whatever the network raises
        path = download_pretrained_from_hf(repository, filename=CONFIG_FILE)
        if not random:
            download_pretrained_from_hf(repository)
    return _model_config(Path(path))


def _model_config(path: Path) -> dict[str, Any]:
    config = json.loads(path.read_text())
    if "model_cfg" not in config:
        raise ValueError(f"{path}: no key 'model_cfg', it is not open_clip's configuration; it has {', '.join(config)}")
    return config["model_cfg"]


def _check_weights(name: str, model_cfg: dict[str, Any], source: str, random: bool) -> None:
    if random:
        if source:
            raise ValueError(f"'openclip:{name},{source}' names weights, but init is 'random': leave one of them out")
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not source:
        raise ValueError(
            f"'openclip:{name}' names no weights: use 'openclip:{name},TAG-or-FILE' (tags: {', '.join(tags) or 'none'})"
            " or init: random"
        )
    _check_activation(name, model_cfg, source)
    if source in tags:
        look_for_hub()
        with _found(f"weights of 'openclip:{name},{source}'", Exception):
            download_pretrained(open_clip.get_pretrained_cfg(name, source))
    elif not Path(source).is_file():
        raise FileNotFoundError(
            f"weights of 'openclip:{name},{source}' not found: no file {Path(source).resolve()}, and not one of the "
            f"tags of {name} ({', '.join(tags) or 'it has none'})"
        )


def _check_activation(name: str, model_cfg: dict[str, Any], source: str) -> None:
    """Refuse weights that were trained with another activation; the tensors alone would fit.

    Those of a tag are known, and so are files that are named like what a tag downloads.
    """
    base = name.removesuffix("-quickgelu")
    quick = model_cfg.get("quick_gelu", False)
    for tag in open_clip.list_pretrained_tags_by_model(base):
        known = open_clip.get_pretrained_cfg(base, tag)
        # Of the hub all files have one name, and are in a folder named like the repository.
        names = {Path(known["url"]).name, *known["hf_hub"].split("/")[1:2]} - {"", f"{base}.pt"}
        right = f"{base}-quickgelu" if known.get("quick_gelu", False) else base
        if right != name and (source == tag or any(part.endswith(tuple(names)) for part in Path(source).parts)):
            trained, built = ("QuickGELU", "GELU")[:: -1 if quick else 1]
            raise ValueError(
                f"the weights {source} were trained with {trained}, and the activations of {name} are {built}: use "
                f"'openclip:{right},{source}'"
            )


@contextmanager
def _found(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Raise a ``FileNotFoundError`` that says where a part was looked for."""
    try:
        yield
    except errors as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        looked = places(Path("~/.cache/clip").expanduser())
        raise FileNotFoundError(f"{what} not found: looked in {looked} ({reason[0]})") from error
