"""Which target a model is: what its files say of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny.checkpoints import build
from vllm_specvlm import zoo
from vllm_specvlm.draft import head_config, target_id


def copy(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """The tiny LLaVA with other tensors, and other entries of its configuration."""
    folder.mkdir()
    given = json.loads((build("llava") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(given | config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_adapters_change(tmp_path: Path) -> None:
    whole = load_file(build("llava") / "model.safetensors")
    mine = target_id.of_folder(build("llava"))
    assert mine.layer_digest and mine.projector_digest
    last = f"layers.{(mine.layers or 0) - 1}."
    for number, (part, said) in enumerate((("o_proj", "layer"), ("down_proj", "layer"), ("linear_2", "projector"))):
        ends = f"{part}.weight"
        name = next(key for key in whole if key.endswith(ends) and "vision" not in key and (last in key or number == 2))
        changed = whole | {name: whole[name] + 0.1}
        difference = mine.differs(target_id.of_folder(copy(tmp_path / str(number), changed)))
        assert difference is not None and difference.startswith(f"its {said} digest is")


def test_the_dtype_of_files_does_not_matter_and_quantised_ones_are_not_compared(tmp_path: Path) -> None:
    whole = {name: tensor.bfloat16() for name, tensor in load_file(build("llava") / "model.safetensors").items()}
    name = next(key for key in whole if key.endswith("linear_2.weight"))
    whole[name][0, :2] = torch.tensor([3.3e-6, 2.0**-17 * (1 - 2**-8)])  # float16 would round them
    mine = target_id.of_folder(copy(tmp_path / "bfloat16", whole))
    halves = {name: tensor.half() for name, tensor in whole.items()}
    theirs = target_id.of_folder(copy(tmp_path / "float16", halves))
    assert mine.layer_digest == theirs.layer_digest and mine.projector_digest == theirs.projector_digest
    quantised = target_id.of_folder(copy(tmp_path / "q", whole, quantization_config={"quant_method": "fp8"}))
    assert quantised.digest == mine.digest and quantised.layer_digest is quantised.projector_digest is None


def test_a_truncated_file(tmp_path: Path) -> None:
    path = copy(tmp_path / "target", load_file(build("llava") / "model.safetensors")) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        target_id.of_folder(path.parent)


@pytest.mark.slow
def test_the_targets_that_ship_are_told_apart() -> None:
    """Both are adaptations of one language model, whose final norm stayed as it was. Downloads 180 MB, once."""
    names = ("reference-target", "scenes-target", "scenes-target-576")
    targets = {name: target_id.of_folder(zoo.resolve(f"specvlm/{name}")) for name in names}
    for head in ("reference", "scenes"):
        _, wanted = head_config.read_config(zoo.resolve(f"specvlm/{head}-head"))
        assert wanted.layer_digest and wanted.projector_digest
        for name, target in targets.items():
            difference = wanted.differs(target)
            if name.startswith(head):
                assert difference is None, (head, name, difference)
            else:
                assert difference is not None and difference.startswith("its layer digest is")


@pytest.mark.slow
def test_the_engine_refuses_the_head_of_the_other_target() -> None:
    from vllm.config import ModelConfig

    from vllm_specvlm.engine.head_fit import head_problems

    head = zoo.resolve("specvlm/reference-head")
    for name, fits in (("reference-target", True), ("scenes-target", False)):
        target = ModelConfig(model=zoo.resolve(f"specvlm/{name}"), max_model_len=64)
        problems = head_problems(target, head, text_only_draft=False)
        if fits:
            assert not problems
        else:
            (said,) = problems
            assert "was made for 'reference-target'" in said and "its layer digest is" in said
