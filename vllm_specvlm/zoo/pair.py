"""Build the reference pair once, and find it ever after."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vllm_specvlm.zoo import parts
from vllm_specvlm.zoo.errors import ZooError

NAMES = {"specvlm/reference-target": "target", "specvlm/reference-draft": "draft"}
HEADS = {f"specvlm/{name}": name for name in ("reference-head", "scenes-head")}  # feature heads ship whole
SCENES = ("specvlm/scenes-target", "specvlm/scenes-target-576")
MODELS = (*NAMES, *HEADS, *SCENES)


@dataclass(frozen=True)
class ReferencePair:
    """Checkpoint folders of the reference target and its draft."""

    target: Path
    draft: Path


def default_home() -> Path:
    """``$SPECVLM_HOME``, or ``~/.cache/vllm_specvlm``."""
    named = os.environ.get("SPECVLM_HOME")
    return Path(named) if named else Path.home() / ".cache" / "vllm_specvlm"


def reference_pair(home: Path | None = None) -> ReferencePair:
    """The reference pair under ``home`` (default: :func:`default_home`), built if it is not there yet.

    The first call downloads SmolLM2 (93 MB) unless it is found, and writes about 320 MB in some seconds; later calls
    only look. Builds are keyed by the trained parts, so a new release builds anew. Safe to call from several processes
    at once.

    Raises
    ------
    ZooError
        In one sentence: no network, a checksum that does not match, a missing part.
    """
    home = default_home() if home is None else home
    folder = home / "reference" / parts.fingerprint()
    pair = ReferencePair(folder / "target", folder / "draft")
    if not folder.exists():
        _build(home, folder)
    return pair


def _build(home: Path, folder: Path) -> None:
    # Imported here: finding an existing pair must not cost the import of transformers.
    from vllm_specvlm.zoo import checkpoint, language_model
    from vllm_specvlm.zoo.gguf_file import GgufFile

    def say(what: str) -> None:
        print(f"zoo: {what}", file=sys.stderr, flush=True)

    trained = {name: parts.load(name) for name in parts.NAMES}
    gguf = GgufFile(language_model.find_gguf(home))
    say("converting SmolLM2-135M-Instruct")
    language = language_model.load_tensors(gguf)
    tokenizer = language_model.load_tokenizer(gguf)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        say("writing the reference target")
        tensors = checkpoint.target_tensors(language, trained["target"])
        checkpoint.write(temporary / "target", checkpoint.target_config(), tensors, tokenizer)
        say("writing the reference draft")
        tensors = checkpoint.draft_tensors(language, trained["draft"])
        checkpoint.write(temporary / "draft", checkpoint.draft_config(), tensors, tokenizer)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first: its build is as good as ours
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"the reference pair is in {folder}")


def resolve(name_or_path: str) -> str:
    """The folder of one of MODELS, built on demand; any other name unchanged.

    Raises:
        ZooError: the name begins with `specvlm/` and is none of them, or the model cannot be built.
    """
    if name_or_path in HEADS:
        return str(Path(__file__).parent / "heads" / HEADS[name_or_path])
    if name_or_path in SCENES:
        from vllm_specvlm.zoo.scenes import scenes_target

        return str(scenes_target(name_or_path.removeprefix("specvlm/"), default_home()))
    which = NAMES.get(name_or_path)
    if which is None:
        if name_or_path.startswith("specvlm/"):
            raise ZooError(f"There is no model {name_or_path}: the models are {', '.join(MODELS)}.")
        return name_or_path
    return str(getattr(reference_pair(), which))
