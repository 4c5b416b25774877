"""The model families: one function each, from sizes to a random model and its processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import transformers as tf

from tests.tiny.sizes import Size

_CHAT = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}PLACEHOLDER{% endif %}{% endfor %}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A family: its special tokens, what stands for a picture in a prompt, and how its model and processor are made.

    first_seed is added to the seed: chosen so that seed 0 answers the prompts of `prompts.py` without a near-tie of its
    two best tokens, at which rounding would decide.
    """

    make: Callable[[Any, int, Size, str], tuple[Any, Any]]
    placeholder: str
    specials: Sequence[str] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    clip_names: bool = False
    mrope: bool = False
    first_seed: int = 0

    @property
    def chat_template(self) -> str:
        """A chat template that writes the placeholder for each picture."""
        return _CHAT.replace("PLACEHOLDER", self.placeholder)


def _llava(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """LLaVA-1.5: CLIP and Llama, 16 tokens for every picture."""
    # Features come from the last layer but one; the last is never run.
    vision = size.vision(num_hidden_layers=size.vision_layers + 1, projection_dim=size.vision_hidden)
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**vision),
        text_config=tf.LlamaConfig(**size.text(tokenizer, vocab_size)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    images = tf.CLIPImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_center_crop=True, do_convert_rgb=True
    )
    processor = tf.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=chat,
    )
    return tf.LlavaForConditionalGeneration(config), processor


def _qwen(
    version: str, tokenizer: Any, size: Size, chat: str, text: dict[str, Any], vision: dict[str, Any]
) -> tuple[Any, Any]:
    """Qwen-VL: a tower of its own, 4 to 16 tokens after the picture's shape, positions on three axes."""
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in {
            "image": "image_pad",
            "video": "video_pad",
            "vision_start": "vision_start",
            "vision_end": "vision_end",
        }.items()
    }
    config = getattr(tf, f"{version}VLConfig")(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    patch = vision["patch_size"]
    unit = (2 * patch) ** 2
    images = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 4 * unit, "longest_edge": 16 * unit},
    }
    videos = tf.Qwen3VLVideoProcessor if version == "Qwen3" else tf.Qwen2VLVideoProcessor
    processor = getattr(tf, f"{version}VLProcessor")(
        image_processor=tf.Qwen2VLImageProcessor(**images),
        tokenizer=tokenizer,
        video_processor=videos(**images),
        chat_template=chat,
    )
    return getattr(tf, f"{version}VLForConditionalGeneration")(config), processor


def _qwen2_5_vl(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """Qwen2.5-VL: window attention in the tower except in its last layer."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": size.mrope()}
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "out_hidden_size": size.hidden,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [size.vision_layers - 1],
    }
    text = {**size.text(tokenizer, vocab_size), "rope_parameters": rope}
    return _qwen("Qwen2_5_", tokenizer, size, chat, text, vision)


def _qwen3_vl(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """Qwen3-VL: interleaved axes; features of the tower's first layer are added after the first decoder layer."""
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": size.mrope(interleaved=True),
        "mrope_interleaved": True,
    }
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "out_hidden_size": size.hidden,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {**size.text(tokenizer, vocab_size), "rope_parameters": rope}
    return _qwen("Qwen3", tokenizer, size, chat, text, vision)


def _idefics(kind: str, tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """Idefics3 and SmolVLM: tiles in rows and columns and a global view, 4 tokens each."""
    config = getattr(tf, f"{kind}Config")(
        vision_config=size.vision(image_size=64, patch_size=16),
        text_config=tf.LlamaConfig(**size.text(tokenizer, vocab_size)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    edges = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
    videos = {"video_processor": tf.SmolVLMVideoProcessor(**edges)} if kind == "SmolVLM" else {}
    processor = getattr(tf, f"{kind}Processor")(
        image_processor=getattr(tf, f"{kind}ImageProcessor")(**edges, do_image_splitting=True, do_convert_rgb=True),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat,
        **videos,
    )
    return getattr(tf, f"{kind}ForConditionalGeneration")(config), processor


def _idefics3(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    return _idefics("Idefics3", tokenizer, vocab_size, size, chat)


def _smolvlm(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    return _idefics("SmolVLM", tokenizer, vocab_size, size, chat)


def _internvl(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """InternVL 3 in transformers' format: InternViT and Qwen2, square tiles of 4 tokens."""
    config = tf.InternVLConfig(
        vision_config=size.vision(),
        text_config=tf.Qwen2Config(**size.text(tokenizer, vocab_size)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    edges = {"size": {"height": 56, "width": 56}}
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(**edges, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=tf.InternVLVideoProcessor(**edges),
        image_seq_length=4,
        chat_template=chat,
    )
    return tf.InternVLForConditionalGeneration(config), processor


def _llama(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """A text-only Llama; the tokenizer stands in for a processor."""
    tokenizer.chat_template = chat
    return tf.LlamaForCausalLM(tf.LlamaConfig(**size.text(tokenizer, vocab_size))), tokenizer


_QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_IDEFICS = (
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
_INTERN = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}

FAMILIES: dict[str, Family] = {
    "llava": Family(_llava, "<image>", ["<image>"], clip_names=True, first_seed=200),
    "qwen2_5_vl": Family(_qwen2_5_vl, _QWEN_IMAGE, _QWEN, mrope=True, first_seed=100),
    "qwen3_vl": Family(_qwen3_vl, _QWEN_IMAGE, _QWEN, mrope=True),
    "idefics3": Family(_idefics3, "<image>", _IDEFICS, first_seed=100),
    "smolvlm": Family(_smolvlm, "<image>", _IDEFICS, first_seed=100),
    "internvl": Family(_internvl, "<IMG_CONTEXT>", attributes=_INTERN),
}

TEXT_ONLY = Family(_llama, "")
"""A language model without eyes, which borrows the tokenizer of one of the families."""
