"""From the name of an encoder in a configuration to the encoder."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from gh_downstream.retrieval.encoders.protocol import DualEncoder
from gh_downstream.retrieval.encoders.tiny import TinyConfig, TinyDualEncoder
from gh_downstream.retrieval.encoders.towers import TowersConfig, load_towers

OPTIONS: dict[str, type[TinyConfig | TowersConfig]] = {"tiny": TinyConfig, "towers": TowersConfig}
"""Encoders that are made of options."""

Initialisation = Literal["pretrained", "random"]


def build_encoder(spec: str, *, init: Initialisation = "pretrained", **options: Any) -> DualEncoder:
    """Return the encoder that a specification names, in single precision, on the CPU, in training mode.

    ==============================  =======================================================================
    ``tiny``                        Built in, with ``init="random"`` only; its arguments are the options.
    ``tiny:FOLDER``                 One that was exported.
    ``towers``                      An image network of timm beside a text model of transformers, each with weights of
                                    its own; by default both from packages. What they are is said by the options.
    ``openclip:MODEL,TAG``          A model of open_clip with the pretrained weights of a tag.
    ``openclip:MODEL,FILE``         The same with the weights in a file.
    ``openclip:MODEL``              Only with ``init="random"``.
    ``openclip:local-dir:FOLDER``   A folder with ``open_clip_config.json`` and weights.
    ``openclip:hf-hub:ORG/NAME``    A repository of the Hugging Face hub in that layout.
    ``hf:FOLDER`` or ``hf:ID``      CLIP, SigLIP or ALIGN of transformers, from a folder or the hub.
    ==============================  =======================================================================

    Args:
        spec: One of the above.
        init: ``pretrained`` loads weights and stops where there are none; ``random`` takes the architecture alone.
        options: Of ``tiny`` and ``towers``, see :class:`~gh_downstream.retrieval.encoders.tiny.TinyConfig` and
            :class:`~gh_downstream.retrieval.encoders.towers.TowersConfig`; the others take none.

    Raises:
        ValueError: The specification or an option is unknown, or pretrained weights are wanted but not named.
        FileNotFoundError: The model or its weights are not in the place that was looked in.
        ImportError: The library of the encoder is not installed.
    """
    if init not in ("pretrained", "random"):
        raise ValueError(f"init must be 'pretrained' or 'random', got {init!r}")
    random = init == "random"
    library, _, name = spec.partition(":")
    if spec in OPTIONS:
        config = encoder_config(spec, options)
        if isinstance(config, TowersConfig):
            return load_towers(config, random)
        if not random:
            raise ValueError("encoder 'tiny' has no pretrained weights: set init to 'random', or name another encoder")
        return TinyDualEncoder(config)
    if library not in ("tiny", "openclip", "hf") or not name:
        raise ValueError(
            f"unknown encoder {spec!r}: use 'tiny', 'tiny:FOLDER', 'towers', 'openclip:MODEL,TAG-or-FILE', "
            "'openclip:local-dir:FOLDER', 'openclip:hf-hub:ORG/NAME' or 'hf:FOLDER-or-ID'"
        )
    if options:
        raise ValueError(f"encoder {spec!r} takes no options, got {', '.join(sorted(options))}")
    # Either library takes seconds to import and is optional.
    if library == "openclip":
        from gh_downstream.retrieval.encoders.open_clip import load_open_clip

        return load_open_clip(name, random)
    if library == "hf":
        from gh_downstream.retrieval.encoders.transformers import load_transformers

        return load_transformers(name, random)
    if random:
        raise ValueError(f"encoder {spec!r} has trained weights: leave init out, or use 'tiny' for random ones")
    return TinyDualEncoder.load(name)


def encoder_config(spec: str, options: Mapping[str, Any]) -> TinyConfig | TowersConfig:
    """Return what options of an encoder of :data:`OPTIONS` give; a ``ValueError`` names one that there is not."""
    kind = OPTIONS[spec]
    known = [field.name for field in fields(kind)]
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(f"{', '.join(unknown)}: unknown option of encoder {spec!r}; it has {', '.join(known)}")
    return kind(**options)
