"""What a feature head is made of, and which target it was made for: the `config.json` of its checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.draft import plain_values
from vllm_specvlm.draft.drafter_kind import Kind

CONFIG = "config.json"
MODEL_TYPE = "specvlm_feature_head"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class TargetId:
    """Which target a head belongs to: features of another one mean nothing to it."""

    name: str
    """For messages only."""
    model_type: str | None
    hidden_size: int
    layers: int | None
    """This and the model type are None if a public head was converted without its target at hand."""
    vocabulary: int
    digest: str | None = None
    """SHA-256 (hexadecimal) of the final norm's weights in bfloat16, which no quantisation touches and every training
    but that of adapters moves; None if they were not at hand when a public head was converted."""
    layer_digest: str | None = None
    """The same of matrices of the last layer in the target's files, which adapters move; None if they were not at hand,
    or are quantised, and in checkpoints from before there was this. See `target_id.in_files`."""
    projector_digest: str | None = None
    """The same of what brings pictures to the language model's width."""

    def __post_init__(self) -> None:
        plain_values.check(self, "target's")

    def differs(self, other: TargetId) -> str | None:
        """In which respect `other` is not this target, as `its ... is A, not B`; None if it is."""
        for field_ in dataclasses.fields(self):
            mine, theirs = getattr(self, field_.name), getattr(other, field_.name)
            if field_.name != "name" and None not in (mine, theirs) and mine != theirs:
                return f"its {field_.name.replace('_', ' ')} is {theirs}, not {mine}"
        return None


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """The network of a feature head (EAGLE, Li et al. 2024; SpecVLM, Huang et al. 2025, section 3.3).

    `fusion` is how the target's feature and the next token's embedding meet: `linear` joins them before the layer
    (EAGLE-1 and 2, SpecVLM), `wide` shows both to the layer's attention (EAGLE-3, Li et al. 2025).
    """

    hidden_size: int
    """Of the target: of its features and token embeddings."""
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    target_vocabulary: int
    vocabulary: int | None
    """Tokens the head can draft; None: all, and their logits come from the target's own output layer."""
    rope_parameters: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    """As in a Llama's configuration."""
    max_position_embeddings: int = 1 << 17
    rms_norm_eps: float = 1e-5
    fusion: str = "linear"
    feature_layers: tuple[int, ...] = ()
    """Hidden states entering these layers of the target, side by side; empty: what leaves its final norm."""
    input_norm: bool = True
    """Normalise feature and embedding before they are joined (SpecVLM's addition)."""
    layer_norm: bool = True
    """Normalise the layer's input, as Llama does and EAGLE-1's head does not."""
    norm_before_residual: bool = False
    """The layer's residual is its normalised input, not its input (most EAGLE-3 heads of the speculators library)."""
    output_norm: bool = True
    """Normalise before the output layer."""
    fusion_bias: bool = False
    attention_bias: bool = False
    own_embedding: bool = False
    """The head brings an embedding table of its own in place of the target's."""
    compressor: CompressorConfig = field(default_factory=CompressorConfig)

    def __post_init__(self) -> None:
        plain_values.check(self, "head's")
        if self.fusion not in ("linear", "wide"):
            raise ValueError(f"The head's fusion is {self.fusion!r}; it must be 'linear' or 'wide'.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"The head has {self.num_attention_heads} attention heads, not a multiple of its "
                f"{self.num_key_value_heads} key-value heads; correct its configuration."
            )
        if self.vocabulary is not None and self.vocabulary > self.target_vocabulary:
            raise ValueError(
                f"The head drafts {self.vocabulary} tokens; it must be 1 to the target's {self.target_vocabulary}."
            )

        if self.reads_ahead and self.fusion != "linear":
            raise ValueError(
                f"The head's fusion is {self.fusion!r} and its compressor 'adaptor', whose vector is added behind a "
                "'linear' one; convert the head again."
            )
        layers = list(self.feature_layers)
        if any(not plain_values.is_count(layer, 0) for layer in layers) or layers != sorted(set(layers)):
            raise ValueError(f"The head's feature layers are {layers}; they must ascend from 0, each named once.")

    @property
    def reads_ahead(self) -> bool:
        """How slots stand for pictures and global vectors join the text, as ViSpec has it.

        Of a slot whose next token is a picture's the picture takes the place, as at text the next token's embedding
        comes in; so its slots begin one before its placeholders, its tokens stand in the last of them, and the last
        placeholder's own slot is text. Global vectors are added to what enters the layer. Otherwise a picture's slots
        are its placeholders', its tokens stand in the first of them, and global vectors are added to embeddings.
        """
        return self.compressor.kind == "adaptor"

    @property
    def features(self) -> int:
        """Numbers in one target feature."""
        return self.hidden_size * max(1, len(self.feature_layers))

    @property
    def reduces(self) -> bool:
        """Whether features pass a layer of their own before they are joined with embeddings."""
        return self.fusion == "wide" or len(self.feature_layers) > 1


def as_json(config: HeadConfig, target: TargetId) -> dict[str, Any]:
    """The `config.json` of a head."""
    network = dataclasses.asdict(config) | {"feature_layers": list(config.feature_layers)}
    network["compressor"] = config.compressor.as_dict()
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["SpecVLMFeatureHead"],
        "format": FORMAT,
        "target": dataclasses.asdict(target),
        "network": network,
    }


def _parse(network: dict[str, Any], target: dict[str, Any]) -> tuple[HeadConfig, TargetId]:
    network["feature_layers"] = tuple(network.get("feature_layers", ()))
    network["compressor"] = CompressorConfig.from_dict(network.get("compressor", {"kind": "text"}))
    return HeadConfig(**network), TargetId(**target)


_KIND = Kind("feature head", MODEL_TYPE, FORMAT, "train or convert the head again", _parse)


def is_head(folder: str | Path) -> bool:
    """Whether there is a feature head at `folder`, sound or not."""
    return plain_values.model_type(folder) == MODEL_TYPE


def is_blind(folder: str | Path) -> bool:
    """Whether there is a sound feature head at `folder` that does not look at pictures."""
    try:
        return is_head(folder) and read_config(folder)[0].compressor.kind == "text"
    except ValueError:
        return False


def read_config(folder: str | Path) -> tuple[HeadConfig, TargetId]:
    """What the head in `folder` is made of and made for; see `Kind.read` for errors."""
    return _KIND.read(folder)
