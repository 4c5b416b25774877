"""A recipe: everything that decides what a run trains, in one TOML file."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft import picture_compressor
from vllm_specvlm.train import table
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.layer_choice import LayerChoice


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class DataRecipe:
    """`[[data]]`: one source of conversations."""

    source: str
    """A JSON Lines file of LLaVA's conversations, a folder that a server recorded to, or a source that comes with the
    plugin, such as `specvlm/reference`."""
    weight: float = 1.0
    """Its share among all sources, in any unit."""
    images: str = ""
    """Folder of the pictures that a file names, or of those that `specvlm/scenes` draws from; default: the file's, or
    the recipe's."""

    def __post_init__(self) -> None:
        _check(0 < self.weight < math.inf, f"'weight' is {self.weight}; write a number above 0.")


@dataclass(frozen=True, slots=True)
class AnswersRecipe:
    """`[answers]`: who answers. Serving drafts the target's answers, so training on them is what counts."""

    own: float = 0.5
    """Share of conversations whose last answer the target gives itself; 0: those of the data, 1: always its own.
    Where the data has no answer, the target answers whatever this says."""
    sampled: float = 0.25
    """Share of its own answers that are sampled; the rest is greedy."""
    temperature: float = 1.0
    """Of sampled answers."""
    longest: int = 128
    """Tokens at which an own answer is cut."""
    batch: int = 32
    """Conversations the target reads or answers at a time."""

    def __post_init__(self) -> None:
        for name in ("own", "sampled"):
            share = getattr(self, name)
            _check(0 <= share <= 1, f"'{name}' is {share}; write a share from 0 to 1.")
        _check(0 < self.temperature < math.inf, f"'temperature' is {self.temperature}; write a number above 0.")
        _check(self.longest >= 2 and self.batch >= 1, "'longest' must be 2 or more, 'batch' 1 or more.")


@dataclass(frozen=True, slots=True)
class HeadRecipe:
    """`[head]`: the network; sizes of 0 are the target's own."""

    start: str = ""
    """Folder of a head of this target to go on from, which brings its sizes and vocabulary; `feature_layers` and
    `fusion` must be its, another `compressor` than its starts anew. Empty: a new head."""
    vocabulary: int = 6144
    """Tokens the head can draft: the most frequent of the answers, the end tokens always among them."""
    compressor: CompressorConfig = field(default_factory=lambda: CompressorConfig("pool"))
    """Of visual tokens; `kind = "text"` for a head that does not see."""
    feature_layers: tuple[int, ...] = ()
    """Hidden states entering these layers of the target (EAGLE-3); empty: what leaves its final norm."""
    fusion: str = "linear"
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    intermediate_size: int = 0
    input_norm: bool = True
    layer_norm: bool = True
    output_norm: bool = True

    def __post_init__(self) -> None:
        _check(self.vocabulary >= 2, f"'vocabulary' is {self.vocabulary}; write 2 or more.")
        _check(
            self.compressor.kind != "adaptor",
            "a compressor 'adaptor' is that of converted heads and cannot be trained; write 'global'.",
        )
        for each in dataclasses.fields(self) if self.start else ():
            said = each.name in ("start", "compressor", "feature_layers", "fusion")
            _check(
                said or getattr(self, each.name) == each.default,
                f"'start' names a head with a '{each.name}' of its own; leave '{each.name}' out.",
            )


@dataclass(frozen=True, slots=True)
class ExitRecipe:
    """`[exit]`: an early exit in the place of a feature head."""

    layers: int = 2
    """So many of the target's first layers run before it."""
    blocks: int = 2
    """Of the imitation network."""
    intermediate_size: int = 0
    """Width inside a block; 0: the target's own."""
    vocabulary: int = 6144
    """As a head's."""

    def __post_init__(self) -> None:
        _check(self.layers >= 1, f"'layers' is {self.layers}; write 1 or more.")
        _check(self.blocks >= 1, f"'blocks' is {self.blocks}; write 1 or more.")
        _check(self.vocabulary >= 2, f"'vocabulary' is {self.vocabulary}; write 2 or more.")


@dataclass(frozen=True, slots=True)
class DraftRecipe:
    """`[draft]`: a draft VLM of its own in the place of a feature head."""

    start: str = ""
    """Folder or name of a language model with the target's tokens; empty: the target's own."""
    layers: LayerChoice = field(default_factory=LayerChoice)
    """Those of it that stay; all of a `start` by default."""
    train_tables: bool = False
    """Whether embeddings and output layer learn, too."""
    compressor: CompressorConfig = field(default_factory=lambda: CompressorConfig("none"))
    """Of visual tokens."""

    def __post_init__(self) -> None:
        _check(
            bool(self.start) or self.layers != LayerChoice(),
            "a draft of the target's own language model needs 'layers'; write how many of them it has, or which.",
        )
        kinds = picture_compressor.KINDS
        _check(
            self.compressor.kind in kinds,
            f"a draft VLM's compressor cannot be '{self.compressor.kind}'; write one of {', '.join(kinds)}.",
        )


@dataclass(frozen=True, slots=True)
class LossRecipe:
    """`[losses]`: weights of the losses; 0 leaves one out. See `losses`."""

    ce: float = 0.1
    smooth_l1: float = 1.0
    kl: float = 0.0
    reverse_kl: float = 0.0
    hard_ce: float = 0.0
    cosine: float = 0.0
    intermediate: float = 0.0
    """Of a feature head: the middle of its layer against the target's settled layer (`attention_entropy`)."""
    step_decay: float = 1.0
    """Weight of an unrolled step against the one before it; EAGLE-3 has 0.8."""
    gate_cost: float = 0.02
    """Weight of the share of visual tokens that a gate leaves."""
    gate_score: float = 1.0
    """Weight of the score-function loss of a gate that selects, which its own loss does not reach."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            weight = getattr(self, each.name)
            _check(0 <= weight < math.inf, f"'{each.name}' is {weight}; write a number from 0 up.")
        given = (self.ce, self.smooth_l1, self.kl, self.reverse_kl, self.hard_ce, self.cosine)
        _check(any(given), "all losses have weight 0; give one of ce, smooth_l1, kl, reverse_kl, hard_ce, cosine one.")


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """`[training]`: the optimisation. Batches and pools are per process."""

    steps: int = 2000
    batch: int = 16
    """Conversations an optimiser step learns from."""
    accumulate: int = 1
    """Parts that such a batch is computed in, one after the other."""
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    warmup: int = 50
    """Steps of the learning rate's rise."""
    decay: float = 0.3
    """Share of all steps at the end over which the learning rate falls to a fiftieth."""
    unroll: int = 5
    """Steps on its own outputs that the head is trained for, the first included."""
    bf16: bool = True
    """The target in bfloat16, the head under autocast to it."""
    pool: int = 256
    """Conversations that the target reads or answers before the head learns from them."""
    visits: int = 2
    """How often the head sees each of a pool before the next one."""
    longest: int = 2048
    """Tokens at which a conversation is cut."""
    save_every: int = 200
    keep: int = 2
    """Checkpoints kept."""
    log_every: int = 10

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name in ("warmup", "decay", "weight_decay", "bf16") else 1
            if each.type == "int":
                _check(value >= least, f"'{each.name}' is {value}; write {least} or more.")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            _check(0 < value < math.inf, f"'{name}' is {value}; write a number above 0.")
        _check(0 <= self.weight_decay < math.inf, f"'weight_decay' is {self.weight_decay}; write a number from 0 up.")
        _check(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), f"'betas' is {list(self.betas)}; two < 1.")
        _check(0 <= self.decay <= 1, f"'decay' is {self.decay}; write a share from 0 to 1.")
        _check(
            self.batch % self.accumulate == 0,
            f"'batch' {self.batch} is not a multiple of 'accumulate' {self.accumulate}; change one of them.",
        )
        _check(
            self.pool % self.batch == 0,
            f"'pool' {self.pool} is not a multiple of 'batch' {self.batch}; change one of them.",
        )


@dataclass(frozen=True, slots=True)
class CheckRecipe:
    """`[check]`: acceptance length on held-out conversations, answered greedily by the target."""

    every: int = 200
    """Steps between two checks; 0: never."""
    conversations: int = 48
    chain: int = 5
    """Tokens drafted per check of the chain estimate."""

    def __post_init__(self) -> None:
        _check(self.every >= 0, f"'every' is {self.every}; write 0 or more.")
        _check(self.conversations >= 1 and self.chain >= 1, "'conversations' and 'chain' must be 1 or more.")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The whole file."""

    target: str
    """Name or folder of the target, or `specvlm/reference-target`."""
    data: tuple[DataRecipe, ...]
    out: str = ""
    """Folder of the run; the command line may name another."""
    seed: int = 0
    answers: AnswersRecipe = field(default_factory=AnswersRecipe)
    head: HeadRecipe = field(default_factory=HeadRecipe)
    exit: ExitRecipe | None = None
    """Trained instead of a head, which has to be left out then."""
    draft: DraftRecipe | None = None
    """So is this."""
    losses: LossRecipe = field(default_factory=LossRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    check: CheckRecipe = field(default_factory=CheckRecipe)

    def __post_init__(self) -> None:
        _check(bool(self.data), "there is no [[data]]; name at least one source.")
        given = {"head": self.head != HeadRecipe(), "exit": self.exit is not None, "draft": self.draft is not None}
        tables = [f"[{name}]" for name, there in given.items() if there]
        _check(len(tables) < 2, f"there are {' and '.join(tables)}; a run trains one of them.")
        _check(
            not self.losses.intermediate or (self.exit is None and self.draft is None),
            "[losses] intermediate is of the middle of a feature head's layer, and there is none; leave it 0.",
        )
        reduces = self.head.fusion == "wide" or len(self.head.feature_layers) > 1
        if self.losses.smooth_l1 and reduces:
            raise ValueError(
                "'smooth_l1' compares the head's outputs with the target's features, and this head takes reduced ones "
                "(fusion 'wide' or several feature_layers); set [losses] smooth_l1 = 0 and give ce or kl a weight."
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, defaults written out."""
        values = dataclasses.asdict(self)
        values["head"]["compressor"] = self.head.compressor.as_dict()
        return values


# What a resumed run may change without being another run.
_FREE = {"out": None, "check": None, "training": ("steps", "save_every", "keep", "log_every")}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first key, such as "training.lr", in which two recipes' `as_dict` would train differently."""
    usual = Recipe(target="", data=(DataRecipe(""),)).as_dict()
    for key in now:
        free = _FREE.get(key, ())
        if free is None:
            continue
        if isinstance(now[key], dict) and isinstance(before.get(key, {}), dict):
            # A run of an older version says nothing of options that are new: it had what is usual.
            known = {**(usual[key] or {}), **before.get(key, {})}
            for inner in now[key]:
                if inner not in free and known.get(inner) != now[key][inner]:
                    return f"{key}.{inner}"
        elif before.get(key) != now[key]:
            return key
    return None


def load(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: it cannot be read, is not TOML, or says something that cannot be trained.
    """
    try:
        with path.open("rb") as file:
            parsed = tomllib.load(file)
    except OSError as error:
        raise RecipeError(f"The recipe '{path}' cannot be read ({error.strerror}); give the path of a file.") from error
    except ValueError as error:
        raise RecipeError(f"The recipe '{path}' is not TOML ({error}); correct it.") from error
    return table.read(Recipe, parsed, "The recipe")
