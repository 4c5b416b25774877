from __future__ import annotations

import numpy as np
import pytest

from vllm_specvlm.schedule.cost_curve import KNOTS, CostCurve


def flat_then_linear(rows: int) -> float:
    return 0.010 * max(1.0, rows / 8)


def prior() -> CostCurve:
    return CostCurve({rows: flat_then_linear(rows) for rows in (1, 2, 4, 8, 16, 32, 64)})


@pytest.mark.parametrize("rows", [1, 3, 8, 12, 64])
def test_the_prior_is_believed_at_first(rows: int) -> None:
    assert prior().at(rows) == pytest.approx(flat_then_linear(rows))


def test_beyond_the_last_row_it_goes_on_as_it_did() -> None:
    assert prior().at(640) == pytest.approx(flat_then_linear(640))
    assert prior().at(100_000) == pytest.approx(flat_then_linear(100_000))
    assert CostCurve({1: 0.05, 16: 0.08, 64: 0.14}).at(128) == pytest.approx(0.22)
    assert CostCurve({1: 0.010, 64: 0.010}).at(128) == pytest.approx(0.015), "rows are free no longer some time"


def test_what_many_rows_took_says_nothing_of_few() -> None:
    """Nor the other way round: a first pass over a prompt, pictures in it, is no law for two rows."""
    curve = prior()
    curve.observe(512, 30 * flat_then_linear(512))
    assert curve.at(512) == pytest.approx(30 * flat_then_linear(512))
    assert curve.at(64) == pytest.approx(30 * flat_then_linear(64))
    assert curve.at(8) == curve.at(2) == pytest.approx(0.010)


def test_what_was_not_seen_for_long_is_learned_sooner() -> None:
    def after(steps: int) -> float:
        curve = prior()
        for _ in range(50):
            curve.observe(4, 0.010)
        for _ in range(steps):
            curve.attend(4, 0.0)
        curve.observe(4, 0.0125)
        return curve.at(4)

    assert after(1) == pytest.approx(0.010 * 1.25 ** (0.05 * 17 / 16), rel=1e-4)
    assert after(128) == pytest.approx(0.010 * 1.25**0.25)


def test_one_fast_pass_says_that_the_machine_was_busy_before() -> None:
    """What looks dear is not tried three times in a row."""
    curve = prior()
    for _ in range(50):
        curve.observe(64, 3 * flat_then_linear(64))
    curve.observe(64, flat_then_linear(64))
    assert curve.at(64) == pytest.approx(3**0.5 * flat_then_linear(64))
    for _ in range(2):
        curve.observe(64, flat_then_linear(64))
    assert curve.at(64) < 1.35 * flat_then_linear(64)


def test_passes_of_several_kinds_are_priced_between_them() -> None:
    """Prompts without pictures among prompts with them: none is an outlier."""
    curve = prior()
    for _ in range(100):
        curve.observe(64, flat_then_linear(64), one_kind=False)
        curve.observe(64, 3 * flat_then_linear(64), one_kind=False)
    assert curve.at(64) == pytest.approx(3**0.5 * flat_then_linear(64), rel=0.1)
    assert not curve.doubted(64)


def test_a_first_pass_that_warms_up_is_not_believed_for_long() -> None:
    """Rows of first passes vary: three quick ones of the same size in a row may never come."""
    curve = prior()
    curve.observe(64, 10 * flat_then_linear(64), one_kind=False)
    for rows in (64, 32, 96, 128, 16) * 2:
        curve.observe(rows, flat_then_linear(rows), one_kind=False)
    assert curve.at(64) < 1.6 * flat_then_linear(64)


@pytest.mark.parametrize("passes", [(0.6, 0.6, -0.4), (-0.4, 0.6, 0.6)])
def test_slow_and_fast_passes_are_no_outliers_together(passes: tuple[float, ...]) -> None:
    curve = prior()
    for _ in range(50):
        curve.observe(4, 0.010)
    for each in passes:
        curve.observe(4, 0.010 * np.exp(each))
    assert curve.at(4) == pytest.approx(0.010 * np.exp(-0.2)), "the fast one counts, and the slow ones wait for a third"


def test_a_slow_pass_that_is_not_believed_leaves_the_last_one_where_it_was() -> None:
    curve = prior()
    for _ in range(50):
        curve.observe(4, 0.010)
    for _ in range(128):
        curve.attend(4, 0.0)
    curve.observe(4, 0.030)
    curve.observe(4, 0.0125)
    assert curve.at(4) == pytest.approx(0.010 * 1.25**0.25)


def test_what_is_inferred_does_not_speak_against_what_was_seen() -> None:
    """A flat curve, as on GPUs: that one row takes longer than 512 were thought to is not halved by those 512."""
    flat = {1: 0.010, 8: 0.010, 64: 0.012, 512: 0.020}
    curve = CostCurve(flat)
    curve.observe(1, 0.025)
    assert curve.at(1) == pytest.approx(0.025)
    assert curve.at(512) >= curve.at(64) >= 0.025
    fast = CostCurve(flat)
    fast.observe(512, 0.008)
    assert fast.at(512) == pytest.approx(0.008)
    assert fast.at(1) <= 0.008


def test_what_one_row_took_is_believed_as_far_whatever_else_was_seen() -> None:
    """A pass over a prompt that went as expected says nothing of the 30 rows in the middle."""
    alone, beside = CostCurve({1: 0.010, 8192: 8.2}), CostCurve({1: 0.010, 8192: 8.2})
    alone.observe(1, 0.030)
    beside.observe(1, 0.030)
    beside.observe(8192, 8.2)
    assert beside.at(20) == pytest.approx(alone.at(20), rel=0.25)


def test_passes_are_counted_by_the_graphs_they_are_padded_to() -> None:
    curve = CostCurve({1: 0.010, 64: 0.012}, [16, 64])
    curve.observe(3, 0.010)
    assert curve.seen_between(1, 2) == curve.seen_between(9, 12) == 1
    assert curve.seen_between(17, 64) == 0


def test_a_pass_far_off_is_doubted_until_the_next() -> None:
    curve = prior()
    for _ in range(20):
        curve.observe(4, 0.010)
    curve.observe(4, 0.020)
    assert curve.doubted(4) and not curve.doubted(64)
    curve.observe(4, 0.010)
    assert not curve.doubted(4)


def test_a_smaller_pass_never_looks_dearer_at_first() -> None:
    curve = CostCurve({1: 0.03, 2: 0.01, 4: 0.02})
    assert [curve.at(rows) for rows in (1, 2, 4)] == [0.01, 0.01, 0.02]


def test_observations_correct_their_stretch_and_spread_to_unseen_ones() -> None:
    curve = prior()
    for _ in range(50):
        curve.observe(8, 2 * flat_then_linear(8))
    assert curve.at(8) == pytest.approx(2 * flat_then_linear(8))
    assert curve.at(2) == pytest.approx(2 * flat_then_linear(2))
    assert curve.at(32) == pytest.approx(flat_then_linear(32) + flat_then_linear(8))
    for _ in range(50):
        curve.observe(32, flat_then_linear(32))
    assert curve.at(32) == pytest.approx(flat_then_linear(32), rel=1e-2)
    assert flat_then_linear(16) < curve.at(16) < 2 * flat_then_linear(16)
    assert curve.at(64) == pytest.approx(flat_then_linear(64), rel=1e-2)
    assert curve.seen(32) == 50 and curve.seen(64) == 0
    assert curve.seen_between(32, 128) == curve.seen_between(8, 32) - 50 == 50
    assert curve.seen_between(48, 192) == curve.seen_between(2, 6) == 0


def test_what_the_host_adds_is_not_multiplied_by_more_rows() -> None:
    """Or large trees would look too dear to be tried, and nobody would ever find out."""
    curve = CostCurve({1: 0.040, 64: 0.105, 128: 0.160, 256: 0.290})
    for _ in range(20):
        curve.observe(128, 0.220)
    assert curve.at(384) == pytest.approx(curve.at(128) + 256 * 0.130 / 128, rel=1e-3)
    quicker = CostCurve({1: 0.040, 64: 0.105, 128: 0.160, 256: 0.290})
    for _ in range(20):
        quicker.observe(128, 0.080)
    assert quicker.at(256) == pytest.approx(0.145), "a machine that was busy when the prior was measured"


def test_a_pass_between_two_that_were_seen_costs_something_between() -> None:
    """Corrections fade in the middle of them: what is inferred there does not pull at what was seen."""
    curve = CostCurve({1: 0.010, 512: 0.020})
    for _ in range(20):
        curve.observe(1, 0.025)
        curve.observe(512, 0.026)
    assert curve.at(1) == pytest.approx(0.025, rel=1e-2) and curve.at(512) == pytest.approx(0.026, rel=0.03)
    assert 0.0249 < curve.at(24) < 0.0261


def test_more_rows_never_look_cheaper() -> None:
    curve = prior()
    curve.observe(12, 0.060)
    curve.observe(24, 0.030)
    assert (np.diff(curve.over(np.arange(1, 100, dtype=np.float64))) >= 0).all()


def test_one_stall_is_no_law() -> None:
    curve = prior()
    for _ in range(100):
        curve.observe(4, 0.010)
    curve.observe(4, 5.0)
    assert curve.at(4) == pytest.approx(0.010, rel=0.02)
    for _ in range(3):  # but three in a row are no accident
        curve.observe(4, 0.020)
    assert curve.at(4) == pytest.approx(0.020, rel=0.02)


def test_a_slow_first_pass_is_found_out() -> None:
    curve = prior()
    curve.observe(4, 0.5)
    for _ in range(3):
        curve.observe(4, 0.010)
    assert curve.at(4) == pytest.approx(0.010)


@pytest.mark.parametrize("seen", [{16: 0.05}, {8: 0.010, 64: 0.6}], ids=["one size", "where rows become dear"])
def test_saving_keeps_the_curve(seen: dict[int, float]) -> None:
    curve = prior()
    for rows, seconds in seen.items():
        for _ in range(3):
            curve.observe(rows, seconds)
    again = CostCurve.from_dict(curve.as_dict())
    seconds = np.minimum.accumulate(curve.over(KNOTS)[::-1])[::-1]
    assert again.over(KNOTS) == pytest.approx(seconds, rel=1e-5)


@pytest.mark.parametrize("wrong", [{}, {0: 1.0}, {1: 0.0}, {1: -1.0}])
def test_a_prior_needs_positive_numbers(wrong: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="needs seconds between 1e-09 and 1e\\+06 for positive rows"):
        CostCurve(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rows": [1], "seconds": []},
        {"rows": 1, "seconds": 2},
        {"rows": [float("inf")], "seconds": [1.0]},
        {"rows": [1], "seconds": [None]},
        {"rows": [1], "seconds": [0.1], "observed": [-1]},
    ],
)
def test_what_is_no_saved_curve_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="calibrate again"):
        CostCurve.from_dict(wrong)


def test_one_number_is_as_many() -> None:
    curve = prior()
    curve.observe(24, 0.05)
    rows = np.concatenate([np.arange(1, 700), [8191, 8192, 8193, 20_000]]).astype(np.float64)
    assert [curve.at(int(n)) for n in rows] == pytest.approx(curve.over(rows).tolist())


def test_passes_are_padded_to_the_graphs_that_were_captured() -> None:
    """Rows up to the next graph's are free, and one more costs all of the graph behind; beyond the last none are."""
    line = {1: 0.011, 65: 0.075}
    curve, graphs = CostCurve(line), CostCurve(line, [8, 16, 32])
    for rows, padded in ((1, 8), (8, 8), (9, 16), (17, 32), (32, 32), (33, 33), (300, 300)):
        assert graphs.at(rows) == pytest.approx(curve.at(padded))
        assert graphs.over(np.array([float(rows)]))[0] == pytest.approx(curve.at(padded))
    assert CostCurve.from_dict(graphs.as_dict()).at(9) == pytest.approx(graphs.at(9), rel=1e-5)
    graphs.observe(10, 2 * curve.at(16))
    assert graphs.at(16) == pytest.approx(2 * curve.at(16))


def test_large_passes_each_of_another_stretch_are_learned_from() -> None:
    """Half as long again as expected, and none as large as the one before: that is no busy moment."""
    curve = CostCurve({1: 0.035, 16: 0.055, 64: 0.112, 128: 0.163})
    for rows in (16, 32, 64, 128) * 5:
        curve.observe(rows, curve.at(rows))
    sizes = (384, 256, 448, 320, 512)
    before = [curve.at(rows) for rows in sizes]
    for rows, expected in zip(sizes, before, strict=True):
        curve.observe(rows, 1.45 * expected)
    for rows, expected in zip(sizes, before, strict=True):
        assert 1.1 * expected < curve.at(rows) < 1.5 * expected
    assert curve.at(512) > 1.15 * before[-1], "it had neighbours that were dearer"
    assert curve.at(64) == pytest.approx(0.112), "what was seen to be quick stays so"


def test_one_slow_first_pass_is_no_law() -> None:
    """Of rows never seen before, beside others that were: three times as slow once, and nothing is known by it."""
    curve = prior()
    for rows in (8, 16, 32):
        for _ in range(20):
            curve.observe(rows, 1.5 * flat_then_linear(rows))
    curve.observe(24, 4.5 * flat_then_linear(24))
    assert curve.at(24) == pytest.approx(1.5 * flat_then_linear(24), rel=0.1)
    for _ in range(2):
        curve.observe(24, 4.5 * flat_then_linear(24))
    assert curve.at(24) > 2 * flat_then_linear(24), "three times in a row it is"
