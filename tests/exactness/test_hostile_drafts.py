"""A draft VLM whose folder was made to do harm: no code of it runs, no pickle is opened, no path leaves the folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import EngineArgs

from tests.exactness.engines import target_of
from tests.tiny.checkpoints import build
from tests.tiny.heads import build_head
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.engine import plugin


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Exists when hostile code has run."""
    return tmp_path / "mark"


@pytest.fixture
def draft(tmp_path: Path, mark: Path) -> Path:
    """A good draft, beside which there is a module that makes the mark when it is imported."""
    plugin.register()
    folder = shutil.copytree(build("llava", seed=3), tmp_path / "draft")
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import LlavaConfig, LlavaProcessor as EvilProcessor\n"
        "from transformers import PreTrainedTokenizerFast as EvilTokenizer\n"
        "class EvilConfig(LlavaConfig): pass\n"  # its own class: transformers writes its name into what it loads
    )
    return folder


def configure(draft: Path, **options: Any) -> Any:
    arguments = {"model": str(target_of("llava")), "dtype": "float32", "enforce_eager": True, "max_model_len": 512}
    speculative = {"method": "specvlm", "model": str(draft)}
    return EngineArgs(**arguments, **options, speculative_config=speculative).create_engine_config()


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(draft: Path) -> str:
    with pytest.raises(ValueError) as caught:
        configure(draft)
    said = str(caught.value)
    assert "\n" not in said and str(draft) in said
    return said


def test_code_of_a_model(draft: Path, mark: Path) -> None:
    edit(draft / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})
    refusal(draft)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("file", "auto"),
    [
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}),
        ("processor_config.json", {"AutoProcessor": "evil.EvilProcessor"}),
        ("config.json", {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}),
    ],
)
def test_code_beside_known_classes(file: str, auto: dict[str, Any], draft: Path, mark: Path) -> None:
    """The known class is taken, or the draft refused; the folder's own code is not run."""
    edit(draft / file, auto_map=auto)
    try:
        configure(draft)
    except ValueError as error:
        assert "\n" not in str(error)
    assert not mark.exists()


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_weights_in_pickles(name: str, draft: Path, mark: Path) -> None:
    for file in draft.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": _Bomb(mark)}, draft / name)
    assert "keeps its weights in pickles" in refusal(draft)
    assert not mark.exists()


@pytest.mark.parametrize(
    "config", ["[]", "{", "[" * 100_000, '{"model_type": "llava", "text_config": 5}'], ids=lambda text: text[:20]
)
def test_configurations_that_are_none(config: str, draft: Path) -> None:
    (draft / "config.json").write_text(config)
    refusal(draft)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/draft", "a\x00b", "x" * 5000, "../../../../etc", "/etc/passwd"])
def test_names_that_are_none(name: str) -> None:
    plugin.register()
    with pytest.raises(ValueError) as caught:
        configure(Path(name) if "\x00" not in name and not name.startswith("~") else name)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_head_that_names_files_elsewhere(tmp_path: Path) -> None:
    """Whatever a head's configuration calls its target is a name for messages."""
    plugin.register()
    head = shutil.copytree(build_head("llava", CompressorConfig(kind="pool", ratio=4)), tmp_path / "head")
    given = json.loads((head / "config.json").read_text())
    edit(head / "config.json", target={**given["target"], "name": "../../etc/passwd"})
    configure(head)
    edit(head / "config.json", target={**given["target"], "name": "../../etc/passwd", "hidden_size": 64})
    assert "was made for '../../etc/passwd'" in refusal(head)


def test_the_traps_work(draft: Path, mark: Path) -> None:
    """A control: both would have left their mark."""
    edit(draft / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})
    from transformers import AutoConfig

    AutoConfig.from_pretrained(draft, trust_remote_code=True)
    assert mark.exists()
    mark.unlink()
    pickle.loads(pickle.dumps(_Bomb(mark)))
    assert mark.exists()
