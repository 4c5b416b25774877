"""Questions about pictures in files, the engines that answer them, and what plain vLLM answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import SamplingParams

from tests.exactness.engines import engine
from tests.tiny.checkpoints import DRAFT, build
from tests.tiny.prompts import picture

_BODY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True}
_PROMPTS = ("what is this?", "which is red?", "tell the tale of the red tree")


def options(pictures: Path) -> dict[str, Any]:
    """Of a tiny engine with a draft VLM, trees in every step."""
    return {
        "model": str(build("llava")),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 64 << 20,
        "block_size": 32,
        "allowed_local_media_path": str(pictures),
        "speculative_config": {
            "method": "specvlm",
            "model": str(build("llava", seed=7, size=DRAFT)),
            "num_speculative_tokens": 8,
            "planner": False,
        },
    }


def line(number: int, **changes: Any) -> dict[str, Any]:
    """The question of that number, in the short form."""
    prompt = _PROMPTS[number % len(_PROMPTS)]
    return {"custom_id": f"q{number}", "prompt": prompt, "image": f"{number}.png", **_BODY, **changes}


def write(folder: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """The file of questions, beside their pictures; those whose name is no number are not made."""
    for entry in lines:
        name = Path(entry["image"])
        if name.stem.isdecimal() and not (folder / name).exists():
            picture(int(name.stem)).save(folder / name)
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return file


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The answers by name; fails if a question has two."""
    entries = [json.loads(each) for each in file.read_text().splitlines()]
    names = [entry["custom_id"] for entry in entries]
    assert len(set(names)) == len(names), "a question was answered twice"
    return dict(zip(names, entries, strict=True))


def tokens(entry: dict[str, Any]) -> list[int]:
    """The tokens of an answer."""
    assert entry["error"] is None, entry
    found: list[int] = entry["response"]["body"]["choices"][0]["token_ids"]
    return found


def plain_tokens(folder: Path, lines: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """What plain vLLM, in this process, answers to the questions, by name."""
    llm = engine(build("llava"), allowed_local_media_path=str(folder))
    asked = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": (folder / entry["image"]).as_uri()}},
                    {"type": "text", "text": entry["prompt"]},
                ],
            }
        ]
        for entry in lines
    ]
    params = [SamplingParams(temperature=0, max_tokens=entry["max_tokens"], ignore_eos=True) for entry in lines]
    outputs = llm.chat(asked, params, use_tqdm=False)
    return {entry["custom_id"]: list(output.outputs[0].token_ids) for entry, output in zip(lines, outputs, strict=True)}
