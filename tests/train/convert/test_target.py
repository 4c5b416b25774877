"""What the target adds: its identity, shared tables that are left out, and a cut vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.train.convert.checkpoints import (
    DRAFT,
    HIDDEN,
    LAYERS,
    LLAMA,
    VOCABULARY,
    eagle1,
    eagle3,
    speculators,
    write,
    write_target,
)
from vllm_specvlm.draft import target_id
from vllm_specvlm.train.convert import target as targets
from vllm_specvlm.train.convert.conversion import convert
from vllm_specvlm.train.convert.parts import Wishes


def with_target(tmp_path: Path, **changed: object) -> tuple[Path, Wishes]:
    """An EAGLE-1 head and a target with its embedding table."""
    weights = eagle1()
    source = write(tmp_path / "source", weights)
    folder = write_target(tmp_path / "target", weights["embed_tokens.weight"], **changed)  # type: ignore[arg-type]
    return source, Wishes(target=targets.of_folder(folder))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_equal_table_is_left_out(tmp_path: Path, nested: bool, dtype: torch.dtype) -> None:
    source, wishes = with_target(tmp_path, nested=nested, dtype=dtype)
    result = convert(source, wishes)
    assert not result.head.config.own_embedding
    assert "embed_tokens.weight" not in result.head.state_dict()
    assert result.target == target_id.of_folder(tmp_path / "target")
    assert result.target.digest is not None


def test_another_table_is_kept(tmp_path: Path) -> None:
    weights = eagle1()
    other = weights["embed_tokens.weight"].clone()
    other[-1, -1] += 1
    target = targets.of_folder(write_target(tmp_path / "target", other))
    head = convert(write(tmp_path / "source", weights), Wishes(target=target)).head
    assert head.config.own_embedding
    assert torch.equal(head.embed_tokens.weight, weights["embed_tokens.weight"])


def test_without_a_target_it_is_kept_and_said(tmp_path: Path) -> None:
    result = convert(write(tmp_path, eagle1()), Wishes())
    assert result.head.config.own_embedding
    assert any("embedding table was kept" in note for note in result.notes)
    assert any("No --target" in note for note in result.notes)
    assert (result.target.model_type, result.target.layers, result.target.digest) == (None, None, None)
    assert (result.target.hidden_size, result.target.vocabulary) == (HIDDEN, VOCABULARY)


def test_a_head_for_a_target_with_more_tokens(tmp_path: Path) -> None:
    weights = eagle1()
    more = torch.cat((weights["embed_tokens.weight"], torch.ones(6, HIDDEN)))
    target = targets.of_folder(write_target(tmp_path / "target", more))
    head = convert(write(tmp_path / "source", weights), Wishes(target=target)).head
    assert (head.config.own_embedding, head.config.target_vocabulary) == (False, VOCABULARY + 6)
    more[0] += 1
    target = targets.of_folder(write_target(tmp_path / "target", more))
    with pytest.raises(ValueError, match=f"{VOCABULARY} tokens .* {VOCABULARY + 6}"):
        convert(tmp_path / "source", Wishes(target=target))


def test_a_target_of_another_width(tmp_path: Path) -> None:
    target = targets.of_folder(write_target(tmp_path / "target", hidden_size=2 * HIDDEN))
    with pytest.raises(ValueError, match=f"{HIDDEN} wide and the target 'target' {2 * HIDDEN}"):
        convert(write(tmp_path / "source", eagle1()), Wishes(target=target))


def test_a_target_without_weights(tmp_path: Path) -> None:
    folder = write_target(tmp_path / "target")
    (folder / "model.safetensors").unlink()
    result = convert(write(tmp_path / "source", eagle1()), Wishes(target=targets.of_folder(folder)))
    assert (result.target.layers, result.target.digest) == (LAYERS, None)
    assert any("weights were not at hand" in note for note in result.notes)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not the folder of a target"):
        targets.of_folder(folder)


def test_the_source_names_its_target(tmp_path: Path) -> None:
    config = speculators(
        "eagle3", norm_before_residual=True, draft_vocab_size=DRAFT, eagle_aux_hidden_state_layer_ids=[2, 6, 9]
    )
    result = convert(write(tmp_path, eagle3(prefix="layers.0"), config), Wishes())
    assert result.target.name == "acme/target-8b"


def test_an_output_layer_equal_to_the_targets_is_left_out(tmp_path: Path) -> None:
    source, wishes = with_target(tmp_path)
    weights = eagle1()
    assert wishes.target is not None
    weights["lm_head.weight"] = wishes.target.output()  # type: ignore[assignment]
    assert convert(write(source, weights), wishes).head.config.vocabulary is None
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    assert convert(write(source, weights), wishes).head.config.vocabulary == VOCABULARY


def test_a_cut_vocabulary_of_the_targets_output_layer(tmp_path: Path) -> None:
    source, wishes = with_target(tmp_path, eos_token_id=[VOCABULARY - 1, 2])
    head = convert(source, Wishes(target=wishes.target, vocabulary=8)).head
    assert head.vocabulary.tolist() == [0, 1, 2, 3, 4, 5, 6, VOCABULARY - 1]
    assert wishes.target is not None
    output = wishes.target.output()
    assert output is not None
    assert torch.equal(head.lm_head.weight, output[head.vocabulary])


def test_a_cut_vocabulary_of_its_own(tmp_path: Path) -> None:
    weights = eagle3()
    source = write(tmp_path, weights, LLAMA | {"draft_vocab_size": DRAFT})
    head = convert(source, Wishes(layers=(2, 6, 9), vocabulary=5)).head
    tokens = weights["t2d"].nonzero().flatten()
    assert head.vocabulary.tolist() == tokens[:5].tolist()
    assert torch.equal(head.lm_head.weight, weights["lm_head.weight"][:5])


@pytest.mark.parametrize("count", [VOCABULARY + 1, 10**6])
def test_a_vocabulary_cannot_grow(tmp_path: Path, count: int) -> None:
    source, wishes = with_target(tmp_path)
    with pytest.raises(ValueError, match=f"{count}, and the head drafts {VOCABULARY} tokens"):
        convert(source, Wishes(target=wishes.target, vocabulary=count))


def test_a_cut_needs_an_output_layer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --target, with its weights"):
        convert(write(tmp_path, eagle1()), Wishes(vocabulary=8))


def test_a_tied_target(tmp_path: Path) -> None:
    source, wishes = with_target(tmp_path)
    folder = tmp_path / "target"
    assert wishes.target is not None
    table = wishes.target.embedding()
    assert table is not None
    write(
        folder,
        {"model.embed_tokens.weight": table, "model.norm.weight": torch.ones(HIDDEN)},
        json.loads((folder / "config.json").read_text()),
    )
    head = convert(source, Wishes(target=targets.of_folder(folder), vocabulary=8)).head
    assert torch.equal(head.lm_head.weight, table[:8])


def test_provenance_says_where_it_came_from(tmp_path: Path) -> None:
    found = convert(write(tmp_path / "eagle", eagle1()), Wishes()).provenance
    json.dumps(found)
    assert (found["source"], found["layout"]) == ("eagle", "EAGLE-1")
    assert set(found["sha256"]) == {"config.json", "model.safetensors"}


def test_a_truncated_target(tmp_path: Path) -> None:
    path = write_target(tmp_path / "target") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        targets.of_folder(tmp_path / "target")
