"""Low-rank adapters for the towers of a dual encoder, through peft (https://github.com/huggingface/peft)."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from gh_downstream.harmonization.checks import check_numbers


@dataclass(kw_only=True)
class LoRAConfig:
    """Train low-rank updates of some weights in place of the weights (Hu et al., arXiv 2106.09685).

    Adapted can be layers of the types Linear, Embedding and Conv2d without groups, and the joint projection of queries,
    keys and values in the attention of torch and open_clip. The output projection of ``torch.nn.MultiheadAttention``
    cannot: it is never called.

    Attributes:
        targets: Wildcards of names of the encoder's modules, such as ``*.q_proj`` (transformers), ``*.attn`` or
            ``*.mlp.*`` (open_clip), ``*.self_attn`` or ``*.linear?`` (``tiny``); each has to fit a module that can be
            adapted. Put ``image.`` or ``text.`` before to stay in one tower.
        rank: Rank of an update, at least 1.
        alpha: Strength of an update: it is multiplied by ``alpha / rank``.
        dropout: Share of a layer's inputs that its update does not see in training, in [0, 1). Has to be 0 for
            attention.
        train: Names or wildcards of parameters of the encoder that train beside the updates; the others are frozen.

    Raises:
        ValueError: A value out of its range.
    """

    targets: list[str]
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    train: list[str] = field(default_factory=lambda: ["logit_*"])

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets of lora names no module")
        check_numbers(self, ">= 1", dropout=">= 0, < 1")


def add_lora(encoder: nn.Module, config: LoRAConfig) -> None:
    """Put adapters into an encoder, whose features stay as they are, and freeze its own parameters.

    Args:
        encoder: Changed in place; the adapters are inside its towers.
        config: Which modules, and how. ``train`` is the caller's to apply.

    Raises:
        ValueError: A wildcard fits no module that can be adapted, or there is dropout before attention.
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("lora needs peft: pip install 'gh_downstream[lora]'") from error
    # peft's own adapter of MultiheadAttention adds the update of the output projection twice, with half its gradient.
    parts = {name: part for name, module in encoder.named_modules() if (part := _adaptable(name, module, encoder))}
    found: dict[str, str] = {}
    for pattern in config.targets:
        fitting = {name: part for name, part in parts.items() if fnmatch.fnmatchcase(name, pattern)}
        if not fitting:
            there = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in parts)
            raise ValueError(
                f"lora.targets: {pattern!r} fits no module that can be adapted; there are {', '.join(there)}"
            )
        found |= fitting
    layers = [name for name, part in found.items() if part == "weight"]
    projections = [f"{name}.{part}" for name, part in found.items() if part != "weight"]
    if projections and config.dropout:
        raise ValueError(
            f"lora.dropout has to be 0 for attention such as {projections[0].rpartition('.')[0]}, got {config.dropout}"
        )
    adapters = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        # As a regular expression of whole names: names in a list would also fit as the ends of others.
        target_modules="|".join(map(re.escape, layers)) or None,
        target_parameters=projections or None,
    )
    inject_adapter_in_model(adapters, encoder)


def merged_state_dict(encoder: nn.Module, prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the state dict that the encoder has without adapters, their updates added to the weights.

    Args:
        encoder: With adapters or without.
        prefixes: What beginnings of names are replaced by.
    """
    state = encoder.state_dict()
    for name, module in encoder.named_modules():
        if hasattr(module, "lora_A"):
            weight = f"{name}.base_layer.{getattr(module, 'parameter_name', 'weight')}"
            state[weight] = state[weight] + module.get_delta_weight("default").detach()

    def renamed(name: str) -> str:
        own = next(filter(name.startswith, prefixes), "")
        return prefixes.get(own, "") + name.removeprefix(own)

    return {renamed(name.replace(".base_layer.", ".")): x for name, x in state.items() if ".lora_" not in name}


def _adaptable(name: str, module: nn.Module, encoder: nn.Module) -> str | None:
    """The parameter of a module that an adapter can update, if any."""
    if isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
        return "in_proj_weight"
    if isinstance(module, (nn.Linear, nn.Embedding)) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        parent = encoder.get_submodule(name.rpartition(".")[0])
        return None if isinstance(parent, nn.MultiheadAttention) else "weight"
    return None
