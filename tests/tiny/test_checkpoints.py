from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from tests.tiny.checkpoints import DRAFT, FAMILIES, TARGET, build
from tests.tiny.prompts import Prompt, many, prompts

GENERATED = 24


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def inputs(folder: Path, prompt: Prompt) -> dict[str, torch.Tensor]:
    processor = tf.AutoProcessor.from_pretrained(folder)
    if prompt.images:
        return dict(processor(text=[prompt.text], images=list(prompt.images), return_tensors="pt"))
    return dict(processor.tokenizer([prompt.text], return_tensors="pt", return_token_type_ids=False))


def load(folder: Path) -> Any:
    model = tf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    return model.eval()


def answer(model: Any, given: dict[str, torch.Tensor]) -> list[int]:
    with torch.inference_mode():
        text = model.generate(**given, max_new_tokens=GENERATED, do_sample=False)
    return text[0, given["input_ids"].shape[1] :].tolist()


def guesses(model: Any, given: dict[str, torch.Tensor], text: list[int]) -> torch.Tensor:
    """The model's four best tokens at each place of a text that is forced on it: [len(text), 4]."""
    ids = torch.cat([given["input_ids"], torch.tensor([text])], dim=1)
    forced = {**given, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in given:
        forced["mm_token_type_ids"] = torch.nn.functional.pad(given["mm_token_type_ids"], (0, len(text)))
    with torch.inference_mode():
        logits = model(**forced).logits
    return logits[0, given["input_ids"].shape[1] - 1 : -1].topk(4).indices


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = build("llava", tmp_path / "a"), build("llava", tmp_path / "b")
    assert a.name == b.name and contents(a) == contents(b)
    assert not list(tmp_path.glob("*/.*"))  # nothing half-made is left


def test_other_arguments_give_another_folder(tmp_path: Path) -> None:
    names = {
        build("llava", tmp_path, **options).name
        for options in ({}, {"seed": 1}, {"echo": 0.5}, {"scale": 0.9}, {"size": DRAFT}, {"vocab_padding": 8})
    }
    assert len(names) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_reads_prompts_as_its_target_does(family: str) -> None:
    target, draft = build(family), build(family, seed=1, size=DRAFT)
    for prompt in prompts(family):
        ids = inputs(target, prompt)["input_ids"]
        assert torch.equal(ids, inputs(draft, prompt)["input_ids"])
        assert ids.shape[1] < 400


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_answer_without_near_ties(family: str) -> None:
    """Else rounding, which batching and other kernels may change, would decide what the exactness tests compare."""
    model = load(build(family))
    for prompt in [*prompts(family), *many(family, 8)]:
        with torch.inference_mode():
            out = model.generate(
                **inputs(build(family), prompt),
                max_new_tokens=64,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.cat(out.logits).topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 2e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_depend_on_pictures_and_can_be_guessed(family: str) -> None:
    """Else the exactness tests prove little: wrong pictures would go unseen, or nothing would be accepted."""
    target, draft = load(build(family)), load(build(family, seed=1, size=DRAFT))
    texts, first, among_four = [], 0, 0
    for prompt in [*prompts(family), *many(family, 4)]:
        given = inputs(build(family), prompt)
        text = answer(target, given)
        best = guesses(draft, given, text)
        texts.append(tuple(text))
        first += int((best[:, 0] == torch.tensor(text)).sum())
        among_four += int((best == torch.tensor(text)[:, None]).any(1).sum())
    assert len(set(texts)) == len(texts)
    total = len(texts) * GENERATED
    assert 0.15 < first / total < 0.8
    assert first / total + 0.05 < among_four / total


def test_bad_drafts_are_what_they_should_be() -> None:
    def vocabulary(folder: Path) -> dict[str, int]:
        return tf.AutoTokenizer.from_pretrained(folder).get_vocab()

    usual = vocabulary(build("llava"))
    assert len(usual) == 512
    other = vocabulary(build("llava", tokenizer="other"))
    assert len(other) == 512 and other["<image>"] == usual["<image>"]
    assert sum(other.get(token) == at for token, at in usual.items()) < 50
    padded = build("llava", size=DRAFT, vocab_padding=64)
    assert vocabulary(padded) == usual
    assert tf.AutoConfig.from_pretrained(padded).text_config.vocab_size == 576
    blind = build("llava", size=DRAFT, text_only=True)
    assert vocabulary(blind) == usual
    assert tf.AutoConfig.from_pretrained(blind).model_type == "llama"


def test_two_ranks_can_share_the_heads() -> None:
    for size in (TARGET, DRAFT):
        assert not (size.heads % 2 or size.kv_heads % 2 or size.vision_heads % 2)


_GENERATE = """
import sys
from vllm import LLM, SamplingParams
from tests.tiny.prompts import prompts
family, folder, blind = sys.argv[1], sys.argv[2], len(sys.argv) > 3
llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=8, block_size=32,
          kv_cache_memory_bytes=64 << 20, **({} if blind else {"limit_mm_per_prompt": {"image": 2}}))
asked = [prompt for prompt in prompts(family) if not (blind and prompt.images)]
outputs = llm.generate([prompt.request() for prompt in asked],
                       SamplingParams(temperature=0, max_tokens=24, ignore_eos=True), use_tqdm=False)
print("ANSWERS", [list(output.outputs[0].token_ids) for output in outputs])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in FAMILIES),
        *((family, {"seed": 1, "size": DRAFT}) for family in FAMILIES),
        ("llava", {"seed": 1, "size": DRAFT, "vocab_padding": 64}),
        ("llava", {"seed": 1, "size": DRAFT, "tokenizer": "other"}),
        ("llava", {"seed": 1, "size": DRAFT, "text_only": True}),
    ],
)
def test_vllm_loads_it_and_answers_as_transformers_does(family: str, options: dict[str, Any]) -> None:
    blind = bool(options.get("text_only"))
    folder = build(family, **options)
    arguments = [sys.executable, "-c", _GENERATE, family, str(folder), *(["blind"] if blind else [])]
    environment = {**os.environ, "VLLM_PLUGINS": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = ast.literal_eval(done.stdout.split("ANSWERS ")[1].splitlines()[0])
    if blind:
        assert len(answers) == 1
        return
    model = load(folder)
    assert answers == [answer(model, inputs(folder, prompt)) for prompt in prompts(family)]
