"""The page's section 8: batch norm nowhere, before or after the activation, and what may be said of it."""
import math
from dataclasses import replace

import numpy as np
import pytest

for package in ("sklearn", "matplotlib", "rich", "threadpoolctl"):
    pytest.importorskip(package, reason="the demo's packages are not installed")

from explain_checks import numbers_of, pictures_of, run_in_fresh_process, text_of  # noqa: E402
from fastbn.demo import training  # noqa: E402
from fastbn.demo.settings import Settings as DemoSettings  # noqa: E402
from fastbn.demo.training import VARIANTS, History, train_variant  # noqa: E402
from fastbn.explain import digits, placement  # noqa: E402
from fastbn.explain.section import Settings, Text  # noqa: E402

pytestmark = pytest.mark.full

T_975_OF_4 = 2.7764451051977987  # Student's t with 4 degrees of freedom, from tables


@pytest.fixture(scope="module")
def short():
    """The page's section with few and short runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "QUICK_EPOCHS", 3)
        yield placement.make(Settings(seed=0, quick=True))


def runs_with(*finals):
    """Runs, one for each of VARIANTS, that end with these accuracies."""
    return [placement.Runs(variant, tuple(range(len(final))), np.ones((len(final), 2)),
                           np.column_stack([np.zeros(len(final)), final]), 450) for variant, final in zip(VARIANTS, finals)]


def claims(runs):
    """The last sentences of the paragraphs on each pair."""
    return [block.text.rsplit(" seeds. ", 1)[1] for block in placement._verdicts(runs)[1:]]


def test_runs_are_the_demos(short):
    for variant, runs in zip(VARIANTS, pictures_of(short)[0].values["runs"], strict=True):
        assert runs.seeds == (0, 1, 2, 3, 4) and runs.test_images == 450
        history = History(variant)
        with digits.one_thread():
            train_variant(digits.load(2), DemoSettings(seed=2, epochs=3), history, lambda: None)
        assert list(runs.losses[2]) == history.losses and list(runs.accuracies[2]) == history.accuracies


def test_the_table_against_plain_formulas(short):
    numbers, runs = numbers_of(short), pictures_of(short)[0].values["runs"]
    for key, one in zip(("none", "before", "after"), runs):
        final = [float(value) for value in one.accuracies[:, -1]]
        mean = math.fsum(final) / 5
        deviation = math.sqrt(math.fsum((value - mean)**2 for value in final) / 4)
        assert numbers[f"placement_{key}_accuracy"] == pytest.approx(mean, rel=1e-12)
        assert numbers[f"placement_{key}_deviation"] == pytest.approx(deviation, rel=1e-9)
        assert numbers[f"placement_{key}_reach"] == pytest.approx(T_975_OF_4 * deviation / math.sqrt(5), rel=1e-9)
        assert numbers[f"placement_{key}_binomial"] == pytest.approx(math.sqrt(mean * (1 - mean) / 450), rel=1e-9)
        assert (numbers[f"placement_{key}_least"], numbers[f"placement_{key}_greatest"]) == (min(final), max(final))
        assert numbers[f"placement_{key}_early"] == pytest.approx(math.fsum(one.accuracies[:, 2]) / 5, rel=1e-12)
        assert numbers[f"placement_{key}_reached"] == sum(max(row) >= 0.95 for row in one.accuracies)


def test_differences_are_paired_and_hold_together():
    runs = runs_with([0.90, 0.92, 0.94, 0.96], [0.91, 0.93, 0.95, 0.975], [0.90, 0.92, 0.94, 0.96])
    found = placement.differences(runs)
    assert set(found) == {(1, 0), (2, 0), (2, 1)}
    gains = np.array([0.01, 0.01, 0.01, 0.015])
    quantile = 4.8566  # t with 3 degrees of freedom at 1 - 0.05 / 6
    np.testing.assert_allclose(found[1, 0], gains)
    interval = placement.mean_interval(found[1, 0], len(found))
    assert interval.mean == pytest.approx(gains.mean())
    assert interval.reach == pytest.approx(quantile * gains.std(ddof=1) / 2, rel=1e-4)
    assert placement.mean_interval(found[2, 0]) == (0, 0)


def test_no_claim_where_the_interval_holds_0():
    same = [0.95, 0.96, 0.97, 0.96, 0.95]
    other = [0.96, 0.95, 0.97, 0.95, 0.97]
    assert claims(runs_with(same, same, other)) == ["That may be chance."] * 3


def test_the_better_one_is_named_where_the_interval_is_clear_of_0():
    low, high = [0.80, 0.81, 0.82, 0.80, 0.81], [0.95, 0.96, 0.97, 0.96, 0.95]
    none, before, after = ("After 2 epochs the better one here is: none.", "After 2 epochs the better one here is: before "
                           "activation.", "After 2 epochs the better one here is: after activation.")
    chance = "That may be chance."
    assert claims(runs_with(low, high, high)) == [before, after, chance]
    assert claims(runs_with(high, low, high)) == [none, chance, after]


def test_claims_on_the_page_follow_its_numbers(short):
    numbers, checked = numbers_of(short), []
    for block in short.blocks:
        if isinstance(block, Text) and "_minus_" in block.text:
            name = next(iter(block.numbers)).removesuffix("_mean")
            low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
            assert ("may be chance" in block.text) == (low <= 0 <= high)
            checked.append(name)
    assert checked == [f"placement_{pair}" for pair in ("before_minus_none", "after_minus_none", "after_minus_before")]


def test_epochs_to_an_accuracy():
    runs = replace(runs_with([0.9, 0.9])[0], accuracies=np.array([[0.5, 0.96, 0.94], [0.1, 0.2, 0.3]]))
    assert list(runs.epochs_to(0.95)) == [2, np.inf]
    assert placement._epochs(np.inf) == "not reached" and str(placement._epochs(4.5)) == "4.5"


def test_a_diverged_run_is_an_error(monkeypatch):
    monkeypatch.setattr(training, "training_step", lambda *step: math.nan)
    with pytest.raises(RuntimeError, match="'after activation' and seed 3 diverged"):
        placement.train(VARIANTS[2], seeds=range(3, 4), epochs=1)


def test_pages_of_other_seeds_have_other_runs(monkeypatch):
    monkeypatch.setattr(placement, "QUICK_EPOCHS", placement.EARLY)
    seen = set()
    for seed in (0, 1, 2**32 - 1):
        runs = pictures_of(placement.make(Settings(seed=seed, quick=True)))[0].values["runs"]
        assert not seen & set(runs[0].seeds) and all(0 <= one < 2**32 for one in runs[0].seeds)
        seen |= set(runs[0].seeds)


def test_the_curves_are_means_within_the_least_and_the_greatest(short):
    picture = pictures_of(short)[0]
    loss, accuracy = picture.figure.axes
    for line, one in zip(loss.lines, picture.values["runs"], strict=True):
        np.testing.assert_allclose(line.get_ydata(), one.losses.mean(axis=0))
    for band, one in zip(accuracy.collections, picture.values["runs"], strict=True):
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(100 * one.accuracies.min())
        assert heights.max() == pytest.approx(100 * one.accuracies.max())


def test_the_lines_work_alone(short):
    for picture in pictures_of(short):
        found = run_in_fresh_process(picture.code, "[one.accuracies.tolist() for one in runs]")
        assert found == [one.accuracies.tolist() for one in picture.values["runs"]]


def test_same_seed_same_section(short, monkeypatch):
    monkeypatch.setattr(placement, "QUICK_EPOCHS", 3)
    placement.train.cache_clear()
    again = placement.make(Settings(seed=0, quick=True))
    assert text_of(again) == text_of(short) and numbers_of(again) == numbers_of(short)


def test_five_seeds_or_more():
    assert placement.SEEDS >= 5 and placement.QUICK_SEEDS >= 5
