"""What a feature head says in the engine, beside what one plain pass over the whole text says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from vllm import LLM, SamplingParams

from tests.exactness.engines import answers, runner, target_of
from tests.tiny.prompts import Prompt, prompts
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.engine.feature_drafter import FeatureDrafter


@dataclass(frozen=True)
class Seen:
    """What the head said in one pass about one request: after which text, and after which drafted tokens."""

    text: tuple[int, ...]
    drafted: tuple[int, ...]
    visible: np.ndarray
    shown: tuple[str, ...]
    """Content hashes of its pictures."""
    pictures: tuple[tuple[int, int, torch.Tensor, torch.Tensor | None], ...]
    """Start and stop of placeholders, compressed tokens, global vector."""
    logits: torch.Tensor


class Recorder:
    """Listens to a drafter that grows chains."""

    def __init__(self, drafter: FeatureDrafter) -> None:
        self.drafter = drafter
        self.seen: list[Seen] = []
        self.features: dict[tuple[int, ...], torch.Tensor] = {}
        self._texts: dict[str, torch.Tensor] = {}

    def logits(self, state: torch.Tensor, frontier: Any, taken: np.ndarray, logits: torch.Tensor) -> None:
        drafter = self.drafter
        for row, said in zip(taken, logits, strict=True):
            tree = drafter._trees[int(frontier.request[row])]
            batch = drafter._runner.input_batch
            text = tuple(batch.token_ids_cpu[tree.row, : tree.root + 1].tolist())
            request = batch.req_ids[tree.row]
            path = self._paths.setdefault((request, len(text)), [])
            if int(frontier.depth[row]):
                path.append(int(frontier.token[row]))
            context = drafter._contexts[request]
            # Pictures that came with a shared prefix were not compressed for this request.
            found = [
                (s, context.compressed.get(s.start) or drafter._compress(tree.row, context, s))
                for s in context.pictures
            ]
            pictures = tuple((s.start, s.stop, c.tokens, c.global_vector) for s, c in found if c is not None)
            shown = tuple(span.identifier for span in context.pictures)
            visible = context.visible[: tree.root].copy()
            self.seen.append(Seen(text, tuple(path), visible, shown, pictures, said.clone()))

    _paths: dict[tuple[str, int], list[int]]


@contextmanager
def recorded(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, FeatureDrafter)
    recorder = Recorder(drafter)
    recorder._paths = {}
    now: list[Any] = []
    with monkeypatch.context() as patch:
        for name in ("_roots", "_level"):
            stock = getattr(drafter, name)

            def listening(frontier: Any, stock: Any = stock) -> tuple[np.ndarray, torch.Tensor | None]:
                taken, hidden = stock(frontier)
                now[:] = [frontier, taken]
                return taken, hidden

            patch.setattr(drafter, name, listening)
        logits = drafter._network.logits

        def heard(state: torch.Tensor) -> torch.Tensor:
            found = logits(state)
            recorder.logits(state, *now, found)
            return found

        patch.setattr(drafter._network, "logits", heard)
        yield recorder


class Reference:
    """The head over a whole text at once, on features of transformers' target."""

    def __init__(self, family: str, head: FeatureHead) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = target_of(family)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.family = family
        self.head = head
        self.embedded = torch.empty(0)
        """What the language model read last: [tokens, hidden], visual tokens in their places."""

    def features(self, text: tuple[int, ...], shown: Sequence[Any]) -> torch.Tensor:
        """float32 [tokens, features] of the target, placeholders in `text` expanded already.

        What is shown are pictures, and videos as arrays.
        """
        inputs: dict[str, Any] = {"input_ids": torch.tensor([text]), "attention_mask": torch.ones(1, len(text)).long()}
        images = [each for each in shown if not isinstance(each, np.ndarray)]
        videos = [each for each in shown if isinstance(each, np.ndarray)]
        if images:
            # Mistral 3's processor asks for patches that the projector has merged.
            merged = {"patch_size": 28} if self.family == "mistral3" else {}
            inputs |= dict(self.processor.image_processor(images=images, return_tensors="pt", **merged))
        if videos:
            inputs |= dict(
                self.processor.video_processor(
                    videos=[torch.from_numpy(video).permute(0, 3, 1, 2) for video in videos],
                    do_sample_frames=False,
                    return_tensors="pt",
                )
            )
            inputs["second_per_grid_ts"] = torch.ones(len(videos))  # as vLLM has it, which hands over no times
        if videos and self.family == "internvl":  # transformers takes frames for pictures, vLLM marks them by an id
            frames = torch.cat(list(inputs.pop("pixel_values_videos")))
            inputs["pixel_values"] = torch.cat([frames, *([inputs["pixel_values"]] if images else [])])
            _, is_video = self._visual(inputs["input_ids"])
            inputs["input_ids"] = inputs["input_ids"].masked_fill(is_video, self.model.config.image_token_id)
        if shown and "qwen" in self.family:
            is_image, is_video = self._visual(inputs["input_ids"])
            inputs["mm_token_type_ids"] = is_image.int() + 2 * is_video.int()
        if self.family != "qwen2_5_vl":
            inputs.pop("second_per_grid_ts", None)
        inputs.pop("num_patches", None)  # of a picture each: the processor's business

        def listen(module: Any, arguments: Any, more: dict[str, Any]) -> None:
            self.embedded = more["inputs_embeds"][0]

        hook = self.model.get_decoder().register_forward_pre_hook(listen, with_kwargs=True)
        with torch.inference_mode():
            output = self.model.model(**inputs, output_hidden_states=True)
        hook.remove()
        layers = self.head.config.feature_layers
        if layers:
            return torch.cat([output.hidden_states[layer][0] for layer in layers], dim=-1)
        found: torch.Tensor = output.last_hidden_state[0]
        return found

    def _visual(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """bool: which tokens stand for parts of pictures, and of videos."""
        config = self.model.config
        moving = getattr(self.processor, "video_token", None)
        of_videos = -1 if moving is None else self.processor.tokenizer.convert_tokens_to_ids(moving)
        return ids == config.image_token_id, ids == of_videos

    def check_pictures(self, seen: Seen) -> None:
        """The compressed tokens are those of this text's pictures, in the latest `features`."""
        pictured = torch.zeros(len(seen.text), dtype=torch.bool)
        for start, stop, compressed, _ in seen.pictures:
            text = self.embedded[:start][~pictured[:start]]
            before = text.mean(dim=0) if len(text) else torch.zeros(self.embedded.shape[-1])
            is_image, is_video = self._visual(torch.tensor(seen.text[start:stop]))
            with torch.inference_mode():
                expected = self.head.compressor(self.embedded[start:stop][is_image | is_video], before)
            torch.testing.assert_close(compressed, expected.tokens, atol=2e-3, rtol=1e-3)
            pictured[start:stop] = True

    def logits(self, seen: Seen, features: torch.Tensor) -> torch.Tensor:
        """What the head says after `seen.text` and `seen.drafted`."""
        head, root = self.head, len(seen.text) - 1
        table = self.model.get_input_embeddings()
        pictured = torch.zeros(root + 1, dtype=torch.bool)
        for start, stop, _, _ in seen.pictures:
            pictured[start:stop] = True
        ids = torch.tensor(seen.text)
        with torch.inference_mode():
            embeddings = table(ids).masked_fill(pictured[:, None], 0.0)[1:]
            is_visual = torch.zeros(root, dtype=torch.bool)
            extra = torch.zeros(head.config.hidden_size)
            for start, stop, visual, vector in seen.pictures:
                is_visual[start : start + len(visual)] = True
                if vector is not None:
                    embeddings[stop:] += vector - extra
                    extra = vector
            kept = torch.from_numpy(seen.visible)
            visual = torch.cat([each[2] for each in seen.pictures]) if seen.pictures else None
            state = head.state(features[:root])
            cache: list[tuple[torch.Tensor, torch.Tensor]] = []
            hidden = head(
                state.masked_fill(pictured[:root, None], 0.0),
                embeddings.masked_fill(pictured[:root, None], 0.0),
                torch.arange(root),
                lambda q, k, v: _attend(q, k, v, kept, cache),
                visual,
                is_visual,
            )[-1:]
            for depth, token in enumerate(seen.drafted):
                hidden = head(
                    hidden,
                    table(torch.tensor([token])) + extra,
                    torch.tensor([root + depth]),
                    lambda q, k, v: _attend(q, k, v, kept, cache),
                )
            if head.config.vocabulary is not None:
                return head.logits(hidden[0])
            said: torch.Tensor = self.model.lm_head(head.norm_output(hidden[0]))
            return said


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kept: torch.Tensor,
    cache: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """[n, heads, size]: causal over everything so far, holes left out."""
    cache.append((k, v))
    keys, values = (torch.cat(parts).transpose(0, 1) for parts in zip(*cache, strict=True))
    total, new = keys.shape[1], q.shape[0]
    seen = torch.cat((kept, torch.ones(total - len(kept), dtype=torch.bool)))
    mask = torch.ones(new, total, dtype=torch.bool).tril(total - new) & seen
    mask |= torch.eye(total, dtype=torch.bool)[total - new :]
    mixed = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys[None], values[None], mask, enable_gqa=True)
    return mixed[0].transpose(0, 1)


def everything(seen: Seen) -> np.ndarray:
    """bool: all slots but what compression leaves of the pictures' places."""
    visible = np.ones(len(seen.visible), dtype=bool)
    for start, stop, compressed, _ in seen.pictures:
        visible[start + len(compressed) : stop] = False
    return visible


def check(recorder: Recorder, family: str, images: dict[str, Any], *, whole: bool = True, most: int = 60) -> int:
    """Compare what was heard with a plain pass; how many were compared.

    `whole`: nothing may be missing from what the head has seen, though prompts came in chunks, or from the cache.
    """
    reference = Reference(family, recorder.drafter._network.head)
    chosen = recorder.seen[:: max(1, len(recorder.seen) // most)]
    for seen in chosen:
        expected = reference.logits(seen, reference.features(seen.text, [images[name] for name in seen.shown]))
        torch.testing.assert_close(seen.logits, expected, atol=2e-3, rtol=1e-3)
        reference.check_pictures(seen)
        if whole:
            assert seen.visible.tolist() == everything(seen).tolist(), "the head was not fed with all it could be"
    return len(chosen)


def pictures_by_hash(llm: LLM, family: str) -> dict[str, Any]:
    """The test prompts' pictures by the hashes that vLLM gives them."""
    return shown_by_hash(llm, prompts(family))


def shown_by_hash(llm: LLM, asked: Sequence[Prompt]) -> dict[str, Any]:
    """The same of prompts whose videos stand before their pictures."""
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, FeatureDrafter)
    found: dict[str, Any] = {}
    for prompt in asked:
        answers(llm, [prompt], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
        (context,) = drafter._contexts.values()
        found.update(zip((s.identifier for s in context.pictures), (*prompt.videos, *prompt.images), strict=True))
    assert llm.reset_prefix_cache()
    return found
