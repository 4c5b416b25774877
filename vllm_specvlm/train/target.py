"""The frozen target: it reads conversations, and answers them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train import attention_entropy
from vllm_specvlm.train.encoder import Encoded, Encoder, join_vision
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.lesson import Lesson, drafted_slots
from vllm_specvlm.train.speaker import Speaker
from vllm_specvlm.train.tap import Tap

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
"""Model types whose placeholder ranges hold visual tokens and nothing else, as slots take them."""


class Target:
    """A vision-language model in inference mode, in one dtype, on one device."""

    def __init__(
        self,
        folder: str,
        dtype: torch.dtype,
        device: torch.device,
        layers: tuple[int, ...] = (),
        ahead: int = 0,
        settles: bool = False,
        tower: bool = False,
    ) -> None:
        """Load it.

        Args:
            folder: or name, for transformers.
            dtype: of its weights.
            device: where it runs.
            layers: the head's `feature_layers`.
            ahead: how many slots on its features are read: see `Lesson.features`.
            settles: whether lessons hold `settled`.
            tower: whether they hold pictures as a LLaVA's projector reads them, not as it gives them.

        Raises:
            RecipeError: it is no model, of no family that can be trained for, or has no such layer.
        """
        import transformers

        try:
            # No code and no pickles of whoever made the model; by default it would ask on the terminal.
            self.model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
            self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise RecipeError(
                f"The target '{folder}' does not load ({said.rstrip('.')}); give the folder of a vision-language model."
            ) from error
        self.folder = folder
        self.config = self.model.config
        if self.config.model_type not in FAMILIES:
            raise RecipeError(
                f"The target '{folder}' is of type {self.config.model_type}, and heads can be trained for "
                f"{', '.join(FAMILIES)} only."
            )
        self.model.requires_grad_(False).eval().to(device)
        self.device = device
        self.text_config: Any = self.config.get_text_config()
        self._layers, self._ahead = layers, ahead
        self.shows_tower = tower and self.config.model_type == "llava"
        self._tower: list[Tensor] = []
        if self.shows_tower:
            self.model.model.multi_modal_projector.register_forward_pre_hook(self._looked)
        self._decoder = self.model.get_decoder()
        outside = [layer for layer in layers if not 0 <= layer < self.text_config.num_hidden_layers]
        if outside:
            raise RecipeError(
                f"The recipe reads layer {outside[0]} of the target, which has "
                f"{self.text_config.num_hidden_layers}; number them from 0."
            )
        self._compared = attention_entropy.layers_of(self.text_config.num_hidden_layers if settles else 0)
        if settles and len(self._compared) < 2:
            raise RecipeError(
                f"[losses] intermediate compares the attention of layers in the first {attention_entropy.SHARE:.0%} of "
                f"the target's {self.text_config.num_hidden_layers}, which are fewer than two; leave it 0."
            )
        self.end_ids = _end_ids(self.model, self.processor.tokenizer)
        self.encoder = Encoder(self.processor, self.end_ids)
        self._speaker = Speaker(self.model, layers, self.end_ids, self._compared)

    def id(self, name: str) -> TargetId:
        """What a head's checkpoint says of its target."""
        from vllm_specvlm.draft import target_id

        shown = Path(name).name if Path(name).exists() else name
        norm = target_id.final_norm(self.model.named_parameters())
        return target_id.of_config(shown, self.config.to_dict(), norm, target_id.folder_of(self.folder))

    @property
    def special_tokens(self) -> frozenset[str]:
        """Texts that its tokenizer or processor reads as marks."""
        tokenizer = self.processor.tokenizer
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        places = [getattr(self.processor, name, None) for name in ("image_token", "video_token")]
        return frozenset(token for token in (*tokenizer.all_special_tokens, *added, *places) if token)

    @property
    def hidden_size(self) -> int:
        """Channels of its features and embeddings."""
        size: int = self.text_config.hidden_size
        return size

    def embed(self, ids: Tensor) -> Tensor:
        """float32 [..., H]: input embeddings of int64 [...]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded.float()

    def output_rows(self, ids: Tensor) -> Tensor:
        """[n, H]: rows of the output layer for the tokens int64 [n]."""
        rows: Tensor = self.model.get_output_embeddings().weight[ids.to(self.device)]
        return rows.detach()

    @torch.inference_mode()
    def read(self, conversations: Sequence[Encoded]) -> list[Lesson]:
        """Lessons from conversations whose answers are given, in one padded forward pass."""
        self._tower.clear()
        with Tap(self._decoder, self._layers, self._compared) as tap:
            self.model.model(**self._batch(conversations, left=False), use_cache=False)
        features, final, settled = tap.features(), tap.final[0], tap.settled()
        towers = self._towers(conversations)
        return [
            self._lesson(
                each,
                [],
                tap.embeddings[0][row],
                features[row],
                final[row],
                None if settled is None else settled[row],
                towers[row],
            )
            for row, each in enumerate(conversations)
        ]

    @torch.inference_mode()
    def answer(
        self, conversations: Sequence[Encoded], longest: int, temperatures: Sequence[float], seed: int
    ) -> list[Lesson]:
        """Lessons from conversations that ask, with the target's own answers, all given at once.

        Args:
            conversations: see `Encoded.asks`.
            longest: tokens at which an answer is cut.
            temperatures: of each answer; 0 for a greedy one.
            seed: of sampling.
        """
        self._tower.clear()
        drawn = torch.tensor(temperatures, device=self.device)
        speeches = self._speaker.speak(self._batch(conversations, left=True), longest, drawn, seed)
        return [
            self._lesson(each, speech.answer, speech.embeddings, speech.features, speech.final, speech.settled, tower)
            for each, speech, tower in zip(conversations, speeches, self._towers(conversations), strict=True)
        ]

    def _looked(self, projector: Any, given: tuple[Tensor, ...]) -> None:
        self._tower += given[0].detach().unbind()

    def _towers(self, conversations: Sequence[Encoded]) -> list[list[Tensor] | None]:
        """Of each conversation: what the projector has just read of its pictures, [V, C] each."""
        if not self.shows_tower:
            return [None] * len(conversations)
        looks = iter(self._tower)
        return [[next(looks) for _ in each.pictures] for each in conversations]

    def _batch(self, conversations: Sequence[Encoded], left: bool) -> dict[str, Any]:
        """Model inputs, padded to the longest."""
        longest = max(len(each.ids) for each in conversations)
        ids = torch.full((len(conversations), longest), self.end_ids[0])
        mask = torch.zeros_like(ids)
        kinds = torch.zeros_like(ids)
        for row, each in enumerate(conversations):
            start = longest - len(each.ids) if left else 0
            ids[row, start : start + len(each.ids)] = torch.tensor(each.ids)
            mask[row, start : start + len(each.ids)] = 1
            for at, length in each.pictures:
                kinds[row, start + at : start + at + length] = 1
        vision = join_vision([each.vision for each in conversations])
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self.config.model_type.startswith("qwen") and vision:
            batch["mm_token_type_ids"] = kinds
        for name, value in vision.items():
            batch[name] = value.to(self.model.dtype) if value.is_floating_point() else value
        return {name: value.to(self.device) for name, value in batch.items()}

    def _lesson(
        self,
        asked: Encoded,
        answer: list[int],
        embeddings: Tensor,
        features: Tensor,
        final: Tensor,
        settled: Tensor | None,
        tower: list[Tensor] | None,
    ) -> Lesson:
        """Cut what a drafter reads out of one row: embeddings [>=P, H], features [>=T-1, F], the others [>=T-1, H]."""
        ids = torch.tensor([*asked.ids, *answer])
        drafted, depths = drafted_slots(torch.tensor([*asked.spoken, *([True] * len(answer))]))
        end = int(drafted[-1]) + 1 if len(drafted) else 0
        seen = [(start, length) for start, length in asked.pictures if start + length <= end]
        text = torch.ones(end, dtype=torch.bool)
        for start, length in seen:
            text[start : start + length] = False
        slots = text.nonzero().flatten()
        wanted = final[(drafted + 1).to(final.device)]
        normaliser, best = self._laws(wanted)
        visual = [embeddings[start : start + length] for start, length in seen] if tower is None else tower[: len(seen)]
        return Lesson(
            ids=ids,
            pictures=seen,
            visual=[tokens.cpu().clone() for tokens in visual],
            slots=slots,
            features=features[(slots + self._ahead).to(features.device)].cpu(),
            drafted=torch.searchsorted(slots, drafted),
            depths=depths,
            final=wanted.cpu(),
            normaliser=normaliser.cpu(),
            best=best.cpu(),
            settled=None if settled is None else settled[(drafted + 1).to(settled.device)].cpu(),
            positions=self._positions(asked, ids),
        )

    def _positions(self, asked: Encoded, ids: Tensor) -> Tensor | None:
        """int64 [3, T]: where the ids stand for a target with M-RoPE."""
        if not self.config.model_type.startswith("qwen"):
            return None
        if not asked.pictures:
            return torch.arange(len(ids)).expand(3, -1)
        kinds = torch.zeros_like(ids)
        for start, length in asked.pictures:
            kinds[start : start + length] = 1
        grids = asked.vision["image_grid_thw"]
        positions, _ = self.model.model.get_rope_index(ids[None], kinds[None], image_grid_thw=grids)
        found: Tensor = positions[:, 0].cpu()
        return found

    def _laws(self, final: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [m] logsumexp of the logits that [m, H] gives, and int64 [m] their best tokens."""
        head = self.model.get_output_embeddings()
        parts = [head(part).float() for part in final.split(256)] or [final.new_zeros(0, 1).float()]
        return torch.cat([part.logsumexp(-1) for part in parts]), torch.cat([part.argmax(-1) for part in parts])


def _end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer, ascending."""
    named = model.generation_config.eos_token_id
    ids = [] if named is None else named if isinstance(named, list) else [named]
    found = {*ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    if not found:
        raise RecipeError("The target names no end token; add eos_token_id to its generation_config.json.")
    return tuple(sorted(found))
