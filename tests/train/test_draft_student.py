"""Training a draft VLM: what it learns from is what drafts in serving, it learns, and its checkpoint is a model."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny.checkpoints import build
from tests.tiny.drafts import language_model, save, small_vlm, trained_target
from tests.tiny.sizes import DRAFT
from tests.train.test_trainer import SMALL
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft import picture_compressor, target_id
from vllm_specvlm.train import draft_checkpoint, draft_student, lesson_round, provenance
from vllm_specvlm.train.conversation import choose_asked
from vllm_specvlm.train.draft_batch import lay_out
from vllm_specvlm.train.draft_student import DraftStudent, drafting_states
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.layer_choice import LayerChoice
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import AnswersRecipe, DraftRecipe, ExitRecipe, HeadRecipe, LossRecipe, Recipe
from vllm_specvlm.train.small_vlm import SmallVLM
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.target import Target
from vllm_specvlm.train.trainer import Trainer

FAMILY = ("llava", "qwen2_5_vl")
CUT = DraftRecipe(layers=LayerChoice(count=1))
RECIPE = dataclasses.replace(SMALL, head=HeadRecipe(), draft=CUT, losses=LossRecipe(ce=1.0, smooth_l1=0.1))


def target(family: str = "llava") -> Target:
    return trained_target(family)


def make(out: Path, recipe: Recipe = RECIPE, family: str = "llava", **hears: Any) -> Trainer[SmallVLM]:
    hears.setdefault("say", lambda text: None)
    student = DraftStudent(build(family))
    return Trainer(student, recipe, target(family), Sources(recipe.data, Path()), out, Ranks(), **hears)


@cache
def lessons(family: str = "llava", own: float = 1.0) -> list[Lesson]:
    answers = AnswersRecipe(own=own, sampled=0.0, longest=12, batch=4)
    return lesson_round.prepare(target(family), Sources(RECIPE.data, Path()), answers, 6, "key")


@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILY)
def test_all_layers_of_the_target_are_the_target(family: str, own: float) -> None:
    """So rows, positions and what is drafted from them are those of the target itself."""
    draft = small_vlm(family, DraftRecipe(layers=LayerChoice(named=(0, 1))))
    found = lessons(family, own)
    assert any(lesson.pictures for lesson in found) and not all(lesson.pictures for lesson in found)
    with torch.no_grad():
        states = drafting_states(draft, target(family), found)
    torch.testing.assert_close(states, torch.cat([lesson.final for lesson in found]), atol=1e-4, rtol=1e-4)
    assert torch.equal(draft.logits(states).argmax(-1), torch.cat([lesson.best for lesson in found]))


def test_wrong_positions_would_be_seen() -> None:
    draft = small_vlm("qwen2_5_vl", DraftRecipe(layers=LayerChoice(named=(0, 1))))
    moved = [dataclasses.replace(lesson, positions=None) for lesson in lessons("qwen2_5_vl") if lesson.pictures]
    with torch.no_grad():
        batch = lay_out(draft, target("qwen2_5_vl"), moved)
        batch.positions = batch.positions.expand(3, *batch.positions.shape)
        states = draft(batch.ids, batch.positions, batch.seen, batch.visual, batch.is_visual)
    found = states[batch.drafted[:, 0], batch.drafted[:, 1]]
    assert (found - torch.cat([lesson.final for lesson in moved])).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("other", [False, True], ids=["cut", "another model"])
def test_the_checkpoint_is_the_network(family: str, other: bool, tmp_path: Path) -> None:
    """transformers' class of the target, reading pixels, says what the network says from the target's visual tokens."""
    recipe = DraftRecipe(start=str(language_model(family))) if other else CUT
    draft = small_vlm(family, recipe, moved=0.5)
    save(tmp_path / "draft", family, draft)
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "draft", dtype=torch.float32)
    assert type(model) is type(target(family).model)
    assert model.config.get_text_config().num_hidden_layers == 1
    compared = 0
    theirs = Target(str(tmp_path / "draft"), torch.float32, torch.device("cpu"))
    sources = Sources(RECIPE.data, Path())
    for at in range(6):
        rng = random.Random(at)
        encoded = theirs.encoder.encode(choose_asked(sources.draw(rng, "train"), rng, 0.0))
        if encoded.asks:
            continue
        ours, own = trained_target(family, other).read([encoded])[0], theirs.read([encoded])[0]
        with torch.no_grad():
            states = drafting_states(draft, target(family), [ours])
        torch.testing.assert_close(states, own.final, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(draft.logits(states).logsumexp(-1), own.normaliser, atol=1e-3, rtol=1e-3)
        compared += bool(ours.pictures)
    assert compared > 1


def test_a_run_learns_and_says_what_it_is(tmp_path: Path) -> None:
    training = dataclasses.replace(RECIPE.training, steps=40, save_every=40, lr=3e-3, pool=8, visits=10)
    divergence = LossRecipe(ce=0.0, kl=1.0, smooth_l1=0.1)
    compressor = CompressorConfig("resampler", queries=3)
    draft = dataclasses.replace(CUT, compressor=compressor)
    run = make(tmp_path, dataclasses.replace(RECIPE, training=training, draft=draft, losses=divergence))
    outcome = run.run()
    losses = [float(row["loss"]) for row in outcome.rows]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    found, made_for = draft_checkpoint.load(outcome.folder)
    assert made_for.differs(target_id.of_folder(build("llava"))) is None
    told = json.loads((outcome.folder / "provenance.json").read_text())
    assert told["recipe"]["draft"]["layers"]["count"] == 1 and float(outcome.rows[-1]["chain"]) >= 1.0
    kept = picture_compressor.load(outcome.folder, found.hidden_size)
    assert kept is not None and kept.config == compressor
    assert all(torch.equal(value, found.compressor.state_dict()[name]) for name, value in kept.state_dict().items())


@pytest.mark.parametrize("train_tables", [False, True])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path, train_tables: bool) -> None:
    def tell(share: float, doing: str) -> None:
        if doing.startswith("step 5,"):
            raise KeyboardInterrupt

    recipe = dataclasses.replace(RECIPE, draft=dataclasses.replace(CUT, train_tables=train_tables))
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = make(tmp_path / "whole", recipe)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", recipe, tell=tell).run()
    parts = make(tmp_path / "parts", recipe)
    parts.run(resume=True)
    assert whole.network is not None and parts.network is not None
    ours, theirs = parts.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    embeddings = target().model.get_input_embeddings().weight
    assert torch.equal(ours["language.embed_tokens.weight"], embeddings) != train_tables


def test_parts_and_rows_of_a_batch_give_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(accumulate: int, rows: int) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(draft_student, "_ROWS", rows)
        draft = small_vlm("llava", dataclasses.replace(CUT, compressor=CompressorConfig("pool", ratio=3.0)))
        training = dataclasses.replace(RECIPE.training, batch=6, pool=6, accumulate=accumulate)
        recipe = dataclasses.replace(RECIPE, training=training)
        output = target().output_rows(draft.vocabulary)
        figures = DraftStudent(build("llava")).learn(
            draft, target(), output, lessons(), recipe, Ranks(), torch.enable_grad()
        )
        assert figures.tokens == sum(lesson.tokens for lesson in lessons())
        return {name: p.grad for name, p in draft.named_parameters() if p.grad is not None}

    one, many = gradients(1, 10_000), gradients(3, 7)
    assert "projector.weight" in one and "language.embed_tokens.weight" not in one and one.keys() == many.keys()
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, atol=1e-5, rtol=1e-3)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[draft\]: 'layers' asks for 3 layers, and there are 2"):
        small_vlm("llava", DraftRecipe(layers=LayerChoice(count=3)))
    with pytest.raises(ValueError, match="needs 'layers'"):
        DraftRecipe()
    with pytest.raises(ValueError, match=r"cannot be 'select'; write one of none, prune"):
        DraftRecipe(layers=LayerChoice(count=1), compressor=CompressorConfig())
    with pytest.raises(RecipeError, match="does not load"):
        small_vlm("llava", DraftRecipe(start=str(tmp_path)))
    strange = build("llava", seed=1, size=DRAFT, tokenizer="other", text_only=True)
    with pytest.raises(RecipeError, match="tokens that are not the target's"):
        small_vlm("llava", DraftRecipe(start=str(strange)))
    with pytest.raises(RecipeError, match="is of type gpt2, whose embeddings are not called embed_tokens"):
        small_vlm("llava", DraftRecipe(start=str(gpt2(tmp_path / "gpt2"))))
    with pytest.raises(RecipeError, match="is made of a Qwen2, not of a llama"):
        small_vlm("qwen2_5_vl", DraftRecipe(start=str(build("qwen2_5_vl", size=DRAFT, text_only=True))))
    other = dataclasses.replace(RECIPE, draft=DraftRecipe(start=str(language_model("llava"))))
    run = make(tmp_path, other)
    run.target = trained_target("llava", tower=True)
    with pytest.raises(RecipeError, match="64 wide and its target 128"):
        run.run()
    with pytest.raises(ValueError, match=r"there are \[exit\] and \[draft\]"):
        dataclasses.replace(RECIPE, exit=ExitRecipe())


def gpt2(folder: Path) -> Path:
    """A language model of another build with the target's tokens."""
    tokenizer = target().processor.tokenizer
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("other", [False, True], ids=["map", "projector"])
def test_a_target_whose_projector_is_not_found_loses_nothing_in_silence(other: bool, tmp_path: Path) -> None:
    shutil.copytree(build("llava"), tmp_path / "target")
    draft = small_vlm("llava", DraftRecipe(start=str(language_model("llava"))) if other else CUT)
    assert draft_checkpoint.serving_tensors(draft, tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    tensors = {name.replace(".linear_2.", ".last."): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"name no whole .*multi_modal_projector.linear_2.*, its projector"):
        draft_checkpoint.serving_tensors(draft, tmp_path / "target")


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"model_type": None}, {"hidden_act": "loud"}], ids=str)
def test_a_damaged_configuration_is_passed_over(change: dict[str, Any], tmp_path: Path) -> None:
    """What `Checkpoints.last` takes as a reason to go back to the one before."""
    save(tmp_path / "draft", "llava", small_vlm("llava", CUT))
    path = tmp_path / "draft" / draft_checkpoint.STUDENT / "config.json"
    config = json.loads(path.read_text())
    for name, value in change.items():
        if value is None:
            del config["network"]["text"][name]
        else:
            config["network"]["text"][name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot be built \(.*\); restore its config.json"):
        draft_checkpoint.load(tmp_path / "draft")


def test_provenance_names_no_places() -> None:
    recipe = dataclasses.replace(RECIPE, draft=DraftRecipe(start="/home/somebody/llama-68m"))
    assert provenance.without_places(recipe)["draft"]["start"] == "llama-68m"


@pytest.mark.parametrize(
    ("given", "layers", "expected"),
    [(3, 30, [0, 1, 29]), (4, 30, [0, 1, 28, 29]), (1, 2, [0]), ([0, 5], 6, [0, 5]), (2, 2, [0, 1])],
)
def test_layers(given: Any, layers: int, expected: list[int]) -> None:
    assert LayerChoice.from_dict(given).of(layers) == expected


@pytest.mark.parametrize("given", [0, -1, True, [], [1, 1], [2, 1], ["0"], "all"])
def test_layers_that_are_none(given: Any) -> None:
    with pytest.raises(ValueError, match="write a number above 0, or a list of layers"):
        LayerChoice.from_dict(given)
