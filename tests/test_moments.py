"""Moments: count, mean and M2 of a batch, merged exactly into those of a data set."""
import copy
import functools
import operator
import pickle

import numpy as np
import pytest

import fastbn
from oracle import FLOATS, check_statistics, sample, statistics, unbiased

pytestmark = pytest.mark.filterwarnings("error")

SHAPES = [((41, 5), 1), ((1000, 3), 1), ((6, 5, 7), 1), ((4, 3, 11, 13), 1), ((4, 6, 6, 9), -1), ((5, 30, 4), 0)]


def assert_same(a, b):
    assert a.count == b.count
    np.testing.assert_array_equal(a.mean, b.mean)
    np.testing.assert_array_equal(a.M2, b.M2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_moments_of_an_array(rng, shape, axis, dtype):
    x = sample(rng, shape, axis=axis, dtype=dtype, ratio=5.0)
    found = fastbn.moments(x, axis=axis)
    assert isinstance(found, fastbn.Moments)
    assert type(found.count) is int and found.count == x.size // shape[axis]
    for values in (found.mean, found.M2, found.var()):
        assert values.dtype == np.float64 and values.shape == (shape[axis],)
    check_statistics(found.mean, found.var(), x, axis)
    np.testing.assert_allclose(found.M2, found.var() * found.count, rtol=1e-15)


def test_default_axis_is_1(rng):
    x = sample(rng, (4, 4, 4))
    assert_same(fastbn.moments(x), fastbn.moments(x, axis=1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_moments_are_the_statistics_of_training(rng, dtype):
    x = sample(rng, (6, 5, 7, 7), dtype=dtype, ratio=3.0)
    _, saved = fastbn.batch_norm_training(x)
    found = fastbn.moments(x)
    np.testing.assert_allclose(found.mean, saved.mean, rtol=1e-7)
    np.testing.assert_allclose(found.var(), saved.var, rtol=2e-6)


@pytest.mark.parametrize("ddof", [0, 1])
def test_variance_by_ddof(rng, ddof):
    x = sample(rng, (11, 3), dtype=np.float64)
    np.testing.assert_allclose(fastbn.moments(x).var(ddof), x.var(axis=0, ddof=ddof), rtol=1e-12)
    expected = unbiased(statistics(x), ddof).astype(float)
    np.testing.assert_allclose(fastbn.moments(x).var(ddof=ddof), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0)], ids=str)
def test_moments_of_nothing(shape):
    nothing = fastbn.moments(np.empty(shape, np.float32))
    assert nothing.count == 0
    np.testing.assert_array_equal(nothing.mean, np.zeros(3))
    np.testing.assert_array_equal(nothing.M2, np.zeros(3))
    assert np.isnan(nothing.var()).all() and np.isnan(nothing.var(1)).all()


def test_one_value_has_variance_0_and_no_unbiased_one():
    one = fastbn.moments(np.array([[3.0, 4.0]]))
    np.testing.assert_array_equal(one.var(), [0, 0])
    assert np.isnan(one.var(ddof=1)).all()


# --- Merging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ratio", [0, 1e3, 1e6])
@pytest.mark.parametrize("cuts", [[1], [500], [999], [0, 3, 3, 10, 700], list(range(1, 1000, 13))], ids=len)
def test_merged_parts_are_the_whole(rng, cuts, ratio, dtype):
    x = sample(rng, (1000, 4), dtype=dtype, ratio=ratio)
    whole = functools.reduce(operator.add, [fastbn.moments(part) for part in np.split(x, cuts)])
    assert whole.count == 1000
    check_statistics(whole.mean, whole.var(), x)


def test_parts_may_differ_in_size_and_in_level(rng):
    parts = [sample(rng, (size, 3), dtype=np.float64, ratio=ratio) for size, ratio in ((1, 0), (1000, 50), (7, 1e4))]
    whole = fastbn.moments(parts[0]).merge(fastbn.moments(parts[1])).merge(fastbn.moments(parts[2]))
    check_statistics(whole.mean, whole.var(), np.concatenate(parts))


def test_parts_may_come_from_other_axes_and_types(rng):
    planes, rows = sample(rng, (4, 3, 5, 5)), sample(rng, (21, 3), dtype=np.float64)
    whole = fastbn.moments(planes) + fastbn.moments(rows, axis=-1)
    together = np.concatenate([np.moveaxis(planes, 1, -1).reshape(-1, 3).astype(np.float64), rows])
    assert whole.count == 121
    np.testing.assert_allclose(whole.mean, together.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(whole.var(), together.var(axis=0), rtol=1e-6)


def test_addition_and_merge_are_the_same_and_leave_the_operands_alone(rng):
    a, b = fastbn.moments(sample(rng, (11, 3))), fastbn.moments(sample(rng, (30, 3), ratio=2.0))
    kept_a, kept_b = copy.deepcopy(a), copy.deepcopy(b)
    total = a + b
    assert_same(a, kept_a)
    assert_same(b, kept_b)
    assert_same(a.merge(b), total)
    assert_same(b, kept_b)


def test_sum_adds_moments(rng):
    parts = [fastbn.moments(sample(rng, (size, 3))) for size in (11, 30, 5)]
    assert_same(sum(parts), functools.reduce(operator.add, parts))


def test_nothing_is_the_neutral_element(rng):
    some, nothing = fastbn.moments(sample(rng, (11, 3))), fastbn.moments(np.empty((0, 3)))
    assert_same(some + nothing, some)
    assert_same(nothing + some, some)
    assert_same(nothing + nothing, nothing)


def test_merging_does_not_depend_on_the_order_beyond_rounding(rng):
    a, b = fastbn.moments(sample(rng, (11, 3))), fastbn.moments(sample(rng, (500, 3), ratio=100.0))
    np.testing.assert_allclose((a + b).mean, (b + a).mean, rtol=1e-14)
    np.testing.assert_allclose((a + b).M2, (b + a).M2, rtol=1e-14)


def test_many_equal_parts_keep_their_accuracy(rng):
    """The mean must not drift, nor M2 lose small parts, over ten thousand merges."""
    part = fastbn.moments(sample(rng, (10, 2), dtype=np.float64, ratio=1e6))
    total = functools.reduce(operator.add, [part] * 10_000)
    assert total.count == 100_000
    np.testing.assert_allclose(total.mean, part.mean, rtol=1e-14)
    np.testing.assert_allclose(total.var(), part.var(), rtol=1e-9)


def test_a_huge_part_keeps_a_finite_variance(rng):
    x = sample(rng, (50, 2)) * np.float32(1e30)
    whole = fastbn.moments(x[:20]) + fastbn.moments(x[20:])
    check_statistics(whole.mean, whole.var(), x)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["copy", "deepcopy", "pickle"])
def test_copies(rng, duplicate):
    original = fastbn.moments(sample(rng, (20, 3)))
    twin = duplicate(original)
    assert_same(twin, original)
    assert_same(twin + original, original + original)


def test_different_numbers_of_features_do_not_merge(rng):
    a, b = fastbn.moments(sample(rng, (11, 3))), fastbn.moments(sample(rng, (11, 4)))
    for combine in (operator.add, fastbn.Moments.merge):
        with pytest.raises(ValueError, match="3.*4|4.*3"):
            combine(a, b)


@pytest.mark.parametrize("other", [1, 0.5, None, np.ones(3), "moments"], ids=str)
def test_only_moments_can_be_added(rng, other):
    a = fastbn.moments(sample(rng, (11, 3)))
    with pytest.raises(TypeError):
        a + other
    with pytest.raises(TypeError):
        a.merge(other)


@pytest.mark.parametrize("arguments, error", [({"momentum": 2.0}, ValueError), ({"momentum": np.nan}, ValueError), ({"ddof": 2}, ValueError),
                                              ({"momentum": None}, ValueError)])
def test_a_step_checks_its_numbers(arguments, error):
    mean, var = np.zeros(2), np.ones(2)
    with pytest.raises(error, match=next(iter(arguments))):
        fastbn.Moments(3, [1.0, 2], [1.0, 2]).step(mean, var, **arguments)
    assert not mean.any() and (var == 1).all()


@pytest.mark.parametrize("dtype", [int, bool, complex])
def test_a_step_goes_to_arrays_of_floats(dtype):
    moments = fastbn.Moments(np.array([3, 4]), [1.0, 2], [1.0, 2])
    with pytest.raises(TypeError, match="running_var has dtype"):
        moments.step(np.zeros(2), np.ones(2, dtype))


def test_negative_sums_of_squares_are_refused():
    with pytest.raises(ValueError, match="M2 is negative for feature 1"):
        fastbn.Moments(5, np.zeros(2), [1.0, -1])
