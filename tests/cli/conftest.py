"""A stand-in for the zoo: names resolve without building the reference pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_specvlm import zoo


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The plugin's own model names and the (almost empty) folders that they resolve to in this test."""
    resolve, folders = zoo.resolve, {}
    for name in ("specvlm/reference-target", "specvlm/reference-draft"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        folders[name] = str(folder)

    monkeypatch.setattr(zoo, "resolve", lambda name: folders[name] if name in folders else resolve(name))
    return folders
