"""Recipes: strict keys, and what cannot be trained is refused in a sentence."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from vllm_specvlm.train import recipe as recipes
from vllm_specvlm.train.errors import RecipeError

MINIMAL = 'target = "t"\n[[data]]\nsource = "specvlm/reference"\n'
COMPRESSORS = runpy.run_path("benchmarks/compressors.py")


def load(tmp_path: Path, text: str) -> recipes.Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return recipes.load(path)


def test_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, MINIMAL)
    assert recipe.training.unroll == 5 and recipe.training.betas == (0.9, 0.95)
    assert (recipe.losses.ce, recipe.losses.smooth_l1) == (0.1, 1.0)


@pytest.mark.parametrize("path", sorted(Path("benchmarks/recipes").glob("*.toml")), ids=lambda path: path.name)
def test_the_recipes_that_come_along(path: Path) -> None:
    recipes.load(path)


@pytest.mark.parametrize("name", COMPRESSORS["COMPRESSORS"])
def test_the_recipes_that_the_benchmark_of_compressors_writes(name: str, tmp_path: Path) -> None:
    said = {"name": name, "target": "t", "images": "i", "start": "h", "steps": 3}
    text = COMPRESSORS["RECIPE"].format(compressor=COMPRESSORS["COMPRESSORS"][name], **said)
    assert load(tmp_path, text).head.compressor.kind == name.partition("-")[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            MINIMAL + "[training]\nlearning_rate = 1\n",
            "'training' has no key 'learning_rate'; its keys are steps, ",
        ),
        ("colour = 1\n" + MINIMAL, "has no key 'colour'; its keys are target, data, "),
        ('target = "t"\n', "needs the key 'data'"),
        (MINIMAL + '[training]\nsteps = "many"\n', "'steps' is 'many'; write a whole number"),
        (MINIMAL + "[training]\nsteps = true\n", "'steps' is True; write a whole number"),
        (MINIMAL + "[training]\nsteps = 0\n", "'steps' is 0; write 1 or more"),
        (MINIMAL + "[training]\nbatch = 6\naccumulate = 4\n", "not a multiple of 'accumulate' 4"),
        (MINIMAL + "[training]\npool = 100\n", "'pool' 100 is not a multiple of 'batch' 16"),
        (MINIMAL + "[answers]\nown = 1.5\n", "'own' is 1.5; write a share"),
        (MINIMAL + "[answers]\ntemperature = inf\n", "'temperature' is inf; write a number above 0"),
        (MINIMAL + "weight = inf\n", "'weight' is inf; write a number above 0"),
        (MINIMAL + "[losses]\nce = inf\n", "'ce' is inf; write a number from 0 up"),
        (MINIMAL + "[training]\nlr = inf\n", "'lr' is inf; write a number above 0"),
        (MINIMAL + "[training]\nclip = nan\n", "'clip' is nan; write a number above 0"),
        (MINIMAL + "[training]\nweight_decay = -1\n", "'weight_decay' is -1.0?; write a number from 0 up"),
        (MINIMAL + "[head]\nfeature_layers = [1, 2]\n", "'smooth_l1' compares .* reduced"),
        (MINIMAL + '[head]\nfusion = "wide"\n', "'smooth_l1' compares .* reduced"),
        (MINIMAL + '[head]\ncompressor = { kind = "zip" }\n', "no compressor of kind 'zip'"),
        (MINIMAL + '[head]\ncompressor = { kind = "adaptor" }\n', "that of converted heads and cannot be trained"),
        (MINIMAL + "[losses]\nce = 0\nsmooth_l1 = 0\n", "all losses have weight 0"),
        ("target = ", "is not TOML"),
    ],
)
def test_refusals(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        load(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        recipes.load(tmp_path / "none.toml")


def test_reduced_features_train_with_other_losses(tmp_path: Path) -> None:
    load(tmp_path, MINIMAL + "[head]\nfeature_layers = [1, 2]\n[losses]\nsmooth_l1 = 0\nkl = 1\n")


def test_what_makes_another_run(tmp_path: Path) -> None:
    one = load(tmp_path, MINIMAL).as_dict()
    longer = load(tmp_path, MINIMAL + "[training]\nsteps = 9\nkeep = 5\n[check]\nevery = 3\n").as_dict()
    other = load(tmp_path, MINIMAL + "[training]\nlr = 0.5\n").as_dict()
    assert recipes.difference(one, longer) is None
    assert recipes.difference(one, other) == "training.lr"
    assert recipes.difference(one, load(tmp_path, "seed = 3\n" + MINIMAL).as_dict()) == "seed"


def test_a_run_of_an_older_version_had_what_is_usual(tmp_path: Path) -> None:
    now = load(tmp_path, MINIMAL).as_dict()
    before = load(tmp_path, MINIMAL).as_dict()
    del before["head"]["start"], before["losses"]["cosine"], before["exit"]
    assert recipes.difference(before, now) is None
    other = load(tmp_path, MINIMAL + "[exit]\nlayers = 1\n").as_dict()
    assert recipes.difference(before, other) == "exit.layers"
    assert recipes.difference(other, now) == "exit"
