"""A timeline as one page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape as escape_html
from importlib import resources
from string import Template

from vllm_specvlm.timeline.timeline import Timeline

_SCRIPTS = ("text.js", "picture.js", "answer.js", "tree.js", "strip.js", "page.js")


def page(timeline: Timeline) -> str:
    """The HTML document: styles, script, picture and record in it, and a policy that forbids it to load anything.

    The record stands in it as JSON that cannot end its element. Its texts become text nodes, never markup.
    """
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    style = _asset("page.css")
    picture = timeline.picture
    record = timeline.as_dict()
    source = ""
    if picture is not None:
        data = record["picture"].pop("base64")  # it stands in the image already
        source = f'src="data:{picture.media_type};base64,{data}" width="{picture.width}" height="{picture.height}"'
    return Template(_asset("page.html")).substitute(
        style_hash=_hash(style),
        script_hash=_hash(script),
        title=_text(f"specvlm trace: {timeline.question[:80]}"),
        style=style,
        target=_text(_short(timeline.target)),
        draft=_text(_short(timeline.draft)),
        setting=_text(f"{_sampling(timeline)} · {timeline.setting} · {timeline.engine}"),
        figures="".join(
            f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in _figures(timeline)
        ),
        hide_picture="hidden" if picture is None else "",
        picture=source,
        question=_text(timeline.question),
        answer=_text("".join(timeline.pieces)),
        percent=_text(
            "how sure the draft was" if timeline.temperature == 0 else "how sure the draft was that it wins the draw"
        ),
        timeline=_json(record),
        script=script,
    )


def _text(text: str) -> str:
    """Text of the document. Halves of characters, which UTF-8 has no bytes for, become question marks."""
    return escape_html(text.encode("utf-8", "replace").decode())


def _asset(name: str) -> str:
    return (resources.files("vllm_specvlm.timeline") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A source of a content security policy: only this very text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(record: object) -> str:
    """JSON within a script element: no `<` in it can open or close anything, whatever the texts say."""
    text = json.dumps(record, separators=(",", ":"))  # ASCII: U+2028 and the like are escaped too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _short(name: str) -> str:
    """The last part of a path or a name."""
    return name.rstrip("/").rpartition("/")[2] or name


def _sampling(timeline: Timeline) -> str:
    if timeline.temperature == 0:
        return "greedy"
    seed = "" if timeline.seed is None else f", seed {timeline.seed}"
    return f"sampled, temperature {timeline.temperature:g}{seed}"


def _figures(timeline: Timeline) -> list[tuple[str, str]]:
    tokens, steps = len(timeline.answer), len(timeline.steps)
    found = [("tokens in the answer", str(tokens)), ("steps of the target", str(steps))]
    if timeline.decoding:
        found += [
            ("tokens a step", f"{timeline.tokens_per_step:.2f}"),
            ("tokens a second", f"{timeline.tokens_per_second:.0f}"),
        ]
    return [*found, ("to the first token", f"{timeline.steps[0].seconds:.2f} s")]
