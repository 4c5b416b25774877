"""Plain text questions, answered by SmolLM2 itself, so that learning about pictures does not cost the target its
general language.

``python -m vllm_specvlm.zoo.chat --work DIR`` writes ``DIR/chat.json``: greedy answers of the untouched language model.
A ninth of the training sequences are such conversations without a picture; the draft, far too small for free text,
sees them too.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vllm_specvlm.zoo import language_model
from vllm_specvlm.zoo.conversation import Conversation
from vllm_specvlm.zoo.gguf_file import GgufFile
from vllm_specvlm.zoo.language_model import IM_END
from vllm_specvlm.zoo.pictures import Split

_TOPICS = """the sun; the moon; rain; snow; the ocean; rivers; mountains; volcanoes; deserts; forests; bees; cats; dogs;
horses; whales; eagles; spiders; ants; elephants; penguins; bread; cheese; coffee; tea; rice; apples; chocolate; salt;
sugar; honey; trains; bicycles; airplanes; ships; bridges; castles; clocks; maps; books; libraries; music; pianos;
guitars; painting; dancing; football; chess; swimming; running; sleep; dreams; friendship; patience; courage; money;
trade; schools; teachers; doctors; farmers; computers; robots; the internet; telephones; cameras; mirrors; magnets;
electricity; gravity; light; sound; ice; fire; wind; gold; iron; glass; paper; winter; summer; gardens; trees; flowers;
mushrooms; cities; villages; rockets; stars; planets; numbers; circles; triangles; colors; painting a wall; cooking
soup; planting a tree; writing a letter; learning a language; saving water; staying healthy"""
_ASKS = (
    "Tell me something about {topic}.",
    "Why do people care about {topic}?",
    "Write two sentences about {topic}.",
    "What should a child know about {topic}?",
    "Give me three short facts about {topic}.",
    "Explain {topic} in simple words.",
    "What is interesting about {topic}?",
    "Write a short story about {topic}.",
)
MAX_ANSWER = 72  # tokens


def questions(split: Split) -> list[str]:
    """All plain questions of ``split``: one topic in nine is held out."""
    topics = [" ".join(topic.split()) for topic in _TOPICS.split(";")]
    chosen = [topic for index, topic in enumerate(topics) if (index % 9 == 0) == (split == "test")]
    return [ask.format(topic=topic) for topic in chosen for ask in _ASKS]


def chat_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """Ids of a question without a picture, up to where the answer starts."""
    ids: list[int] = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").input_ids
    return ids


def load(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[Conversation]:
    """The training conversations of ``path``, as written by :func:`main`. An answer cut at MAX_ANSWER has no end
    token.
    """
    conversations = []
    for entry in json.loads(path.read_text()):
        before = chat_ids(tokenizer, entry["question"])
        answer: list[int] = entry["answer"]
        conversations.append(Conversation(before + answer, [False] * len(before) + [True] * len(answer)))
    return conversations


@torch.no_grad()
def _answers(lm: LlamaForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers to prompts of one length."""
    ids = torch.tensor(prompts)
    out = lm(input_ids=ids, use_cache=True, logits_to_keep=1)
    answers: list[torch.Tensor] = []
    for _ in range(MAX_ANSWER):
        last = out.logits[:, -1].argmax(-1)
        answers.append(last)
        if all((torch.stack(answers, 1) == IM_END).any(1)):
            break
        out = lm(input_ids=last[:, None], past_key_values=out.past_key_values, use_cache=True)
    rows = torch.stack(answers, 1).tolist()
    return [row[: row.index(IM_END) + 1] if IM_END in row else row for row in rows]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--home", type=Path, default=Path.home() / ".cache" / "vllm_specvlm")
    args = parser.parse_args()
    torch.set_num_threads(1)
    gguf = GgufFile(language_model.find_gguf(args.home))
    tokenizer = language_model.load_tokenizer(gguf)
    lm = LlamaForCausalLM(LlamaConfig(**language_model.TEXT_CONFIG)).to(torch.bfloat16).eval()
    lm.load_state_dict(language_model.load_tensors(gguf), strict=False)
    lm.tie_weights()
    asked = questions("train")
    random.Random(0).shuffle(asked)
    by_length: dict[int, list[str]] = {}
    for question in asked:
        by_length.setdefault(len(chat_ids(tokenizer, question)), []).append(question)
    entries: list[dict[str, object]] = []
    for group in by_length.values():
        for start in range(0, len(group), 32):
            some = group[start : start + 32]
            for question, answer in zip(some, _answers(lm, [chat_ids(tokenizer, q) for q in some]), strict=True):
                entries.append({"question": question, "answer": answer})
            print(f"chat: {len(entries)} of {len(asked)}", flush=True)
    (args.work / "chat.json").write_text(json.dumps(entries))


if __name__ == "__main__":
    main()
