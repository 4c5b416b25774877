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
    video: str | None = None
    """What stands for a video in a prompt; None: the family takes none."""

    @property
    def chat_template(self) -> str:
        """A chat template that writes the placeholder for each picture."""
        return _CHAT.replace("PLACEHOLDER", self.placeholder)


_CLIP_IMAGES: dict[str, Any] = {
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "do_convert_rgb": True,
}
_OBLONG = [[56, 112], [112, 56]]


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
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(**_CLIP_IMAGES),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=chat,
    )
    return tf.LlavaForConditionalGeneration(config), processor


def _llava_next(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """LLaVA-NeXT: a base view and tiles after the picture's shape, a separator behind each row."""
    vision = size.vision(num_hidden_layers=size.vision_layers + 1, projection_dim=size.vision_hidden)
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**vision),
        text_config=tf.LlamaConfig(**size.text(tokenizer, vocab_size)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[*_OBLONG, [112, 112]],
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    processor = tf.LlavaNextProcessor(
        image_processor=tf.LlavaNextImageProcessor(image_grid_pinpoints=[*_OBLONG, [112, 112]], **_CLIP_IMAGES),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=chat,
    )
    return tf.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """LLaVA-OneVision: SigLIP and Qwen2, tiles with a cap, and videos of four tokens a frame."""
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**size.vision(vision_use_head=False)),
        text_config=tf.Qwen2Config(**size.text(tokenizer, vocab_size)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_OBLONG,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
    )
    square = {"height": 56, "width": 56}
    processor = tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=_OBLONG),
        tokenizer=tokenizer,
        video_processor=tf.LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=chat,
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


def _mistral3(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """Mistral 3: Pixtral's tower in the picture's own shape, four patches a token, a separator behind each row."""
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = tf.Mistral3Config(
        vision_config=tf.PixtralVisionConfig(**size.vision(image_size=112, rope_parameters=rope)),
        text_config=tf.MistralConfig(**size.text(tokenizer, vocab_size), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    images = tf.PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14})
    processor = tf.PixtralProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        image_token="[IMG]",
        chat_template=chat,
    )
    return tf.Mistral3ForConditionalGeneration(config), processor


def _gemma3(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """Gemma 3: four tokens a picture, which see each other; a layer with a sliding window and one without."""
    text = {
        **size.text(tokenizer, vocab_size),
        "query_pre_attn_scalar": size.head_dim,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", *["full_attention"] * (size.layers - 1)],
    }
    config = tf.Gemma3Config(
        vision_config=size.vision(vision_use_head=False),
        text_config=tf.Gemma3TextConfig(**text),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        tie_word_embeddings=False,
    )
    processor = tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat,
    )
    return tf.Gemma3ForConditionalGeneration(config), processor


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
    pictures = tf.Qwen2VLImageProcessor(**images)
    # vLLM normalises in its tower, and videos as it does pictures; real checkpoints have the same colours for both.
    colours = {"image_mean": pictures.image_mean, "image_std": pictures.image_std}
    processor = getattr(tf, f"{version}VLProcessor")(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=videos(**images, **colours),
        chat_template=chat,
    )
    return getattr(tf, f"{version}VLForConditionalGeneration")(config), processor


def _qwen2_vl(tokenizer: Any, vocab_size: int, size: Size, chat: str) -> tuple[Any, Any]:
    """Qwen2-VL: full attention in the tower."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": size.mrope()}
    vision = {
        "depth": size.vision_layers,
        "embed_dim": size.vision_hidden,
        "hidden_size": size.hidden,
        "num_heads": size.vision_heads,
        "mlp_ratio": size.vision_mlp // size.vision_hidden,
        "patch_size": 14,
    }
    text = {**size.text(tokenizer, vocab_size), "rope_parameters": rope}
    return _qwen("Qwen2", tokenizer, size, chat, text, vision)


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
_QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
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
_GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}

FAMILIES: dict[str, Family] = {
    "llava": Family(_llava, "<image>", ["<image>"], clip_names=True, first_seed=200),
    "llava_next": Family(_llava_next, "<image>", ["<image>"], clip_names=True),
    "llava_onevision": Family(_llava_onevision, "<image>", ["<image>", "<video>"], clip_names=True, video="<video>"),
    "qwen2_vl": Family(_qwen2_vl, _QWEN_IMAGE, _QWEN, mrope=True, first_seed=100, video=_QWEN_VIDEO),
    "qwen2_5_vl": Family(_qwen2_5_vl, _QWEN_IMAGE, _QWEN, mrope=True, first_seed=100, video=_QWEN_VIDEO),
    "qwen3_vl": Family(_qwen3_vl, _QWEN_IMAGE, _QWEN, mrope=True, video=_QWEN_VIDEO),
    "idefics3": Family(_idefics3, "<image>", _IDEFICS, first_seed=100),
    "smolvlm": Family(_smolvlm, "<image>", _IDEFICS, first_seed=100),
    "internvl": Family(_internvl, "<IMG_CONTEXT>", attributes=_INTERN, video="<video>"),
    "mistral3": Family(_mistral3, "[IMG]", ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]),
}

REFUSED: dict[str, Family] = {"gemma3": Family(_gemma3, "<start_of_image>", attributes=_GEMMA, clip_names=True)}
"""Families that method 'specvlm' does not run: good for configurations only, their tokenizers are not like theirs."""

TEXT_ONLY = Family(_llama, "")
"""A language model without eyes, which borrows the tokenizer of one of the families."""
