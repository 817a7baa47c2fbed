"""dmean and dvar: the gradients with respect to given statistics."""
import itertools

import numpy as np
import pytest

import fastbn
from oracle import FLOATS, GRAD_UNIT, WIDE, as_rows, assert_within, parameters, reciprocal_std, sample

pytestmark = pytest.mark.filterwarnings("error")

NAMES = ("dx", "dgamma", "dbeta", "dmean", "dvar")
BOTH = ("dmean", "dvar")


def frozen_case(rng, shape, axis=1, dtype=np.float32, param_dtype=np.float32, ratio=3.0):
    x, dy = sample(rng, shape, axis=axis, dtype=dtype, ratio=ratio), sample(rng, shape, axis=axis, dtype=dtype, ratio=0.5)
    gamma, beta = parameters(rng, shape[axis], param_dtype)
    mean = as_rows(x, axis).mean(axis=0).astype(param_dtype) + rng.uniform(0.1, 0.5, shape[axis]).astype(param_dtype)
    return x, dy, mean, rng.uniform(0.5, 2.0, shape[axis]).astype(param_dtype), gamma, beta


def check(dmean, dvar, x, dy, mean, var, gamma, *, axis=1, eps=1e-5):
    rows, dy_rows = as_rows(x, axis), as_rows(dy, axis)
    rstd, gamma = reciprocal_std(var, eps), np.ones(len(var)) if gamma is None else gamma.astype(WIDE)
    h, unit = (rows - mean.astype(WIDE)) * rstd, GRAD_UNIT[x.dtype]
    if dmean is not None:
        wanted, magnitude = -gamma * rstd * dy_rows.sum(axis=0), np.abs(gamma) * rstd * np.abs(dy_rows).sum(axis=0)
        assert_within(dmean, wanted, unit * magnitude + np.abs(wanted) * np.finfo(dmean.dtype).eps, "dmean")
    if dvar is not None:
        scale = gamma * rstd**2 / 2
        wanted, magnitude = -scale * (dy_rows * h).sum(axis=0), np.abs(scale) * np.abs(dy_rows * h).sum(axis=0)
        assert_within(dvar, wanted, unit * magnitude + np.abs(wanted) * np.finfo(dvar.dtype).eps, "dvar")


@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, axis", [((64, 33), 1), ((501, 3), 1), ((3, 5, 7, 7), 1), ((40, 9, 2, 2), 1),
                                         ((3, 7, 7, 5), -1), ((6, 8), 0)])
def test_reference(rng, shape, axis, dtype, param_dtype):
    x, dy, mean, var, gamma, beta = frozen_case(rng, shape, axis, dtype, param_dtype)
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, axis=axis, return_saved=True)
    *first, dmean, dvar = fastbn.batch_norm_backward(dy, saved, needs=NAMES)
    assert dmean.dtype == dvar.dtype == param_dtype and dmean.shape == dvar.shape == (shape[axis],)
    check(dmean, dvar, x, dy, mean, var, gamma, axis=axis)
    for a, b in zip(first, fastbn.batch_norm_backward(dy, saved), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ratio", [1e4, 1e6])
def test_a_large_mean_costs_no_accuracy(rng, ratio):
    x, dy, mean, var, gamma, _ = frozen_case(rng, (501, 40), ratio=ratio, param_dtype=np.float64)
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, return_saved=True)
    check(*fastbn.batch_norm_backward(dy, saved, needs=BOTH)[3:], x, dy, mean, var, gamma)


@pytest.mark.parametrize("eps", [1e-3, 10.0])
def test_without_gamma_and_with_another_eps(rng, eps):
    x, dy, mean, var, _, _ = frozen_case(rng, (60, 5))
    _, saved = fastbn.batch_norm_inference(x, mean, var, eps=eps, return_saved=True)
    check(*fastbn.batch_norm_backward(dy, saved, needs=BOTH)[3:], x, dy, mean, var, None, eps=eps)


@pytest.mark.parametrize("needs", [s for k in range(6) for s in itertools.combinations(NAMES, k)], ids="+".join)
def test_only_what_is_needed_is_returned(rng, needs):
    x, dy, mean, var, gamma, beta = frozen_case(rng, (60, 5))
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, return_saved=True)
    results = fastbn.batch_norm_backward(dy, saved, needs=needs)
    assert len(results) == (5 if set(BOTH) & set(needs) else 3)
    assert tuple(name for name, r in zip(NAMES, results) if r is not None) == needs
    for a, b in zip(results, fastbn.batch_norm_backward(dy, saved, needs=NAMES)):
        assert a is None or np.array_equal(a, b)


def test_central_differences(rng):
    x, dy, mean, var, gamma, beta = frozen_case(rng, (7, 3, 4), dtype=np.float64, param_dtype=np.float64)

    def loss(mean, var):
        return float((fastbn.batch_norm_inference(x, mean, var, gamma, beta) * dy).sum())

    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, return_saved=True)
    dmean, dvar = fastbn.batch_norm_backward(dy, saved, needs=BOTH)[3:]
    for f, one in enumerate(1e-5 * np.eye(3)):
        along_mean = (loss(mean + one, var) - loss(mean - one, var)) / 2e-5
        along_var = (loss(mean, var + one) - loss(mean, var - one)) / 2e-5
        np.testing.assert_allclose([dmean[f], dvar[f]], [along_mean, along_var], rtol=1e-7, atol=1e-8)


def test_autograd_of_pytorch(rng):
    torch = pytest.importorskip("torch")
    x, dy, mean, var, gamma, beta = frozen_case(rng, (30, 4), dtype=np.float64, param_dtype=np.float64)
    m, v = torch.tensor(mean, requires_grad=True), torch.tensor(var, requires_grad=True)
    y = (torch.tensor(x) - m) / torch.sqrt(v + 1e-5) * torch.tensor(gamma) + torch.tensor(beta)
    expected = torch.autograd.grad(y, (m, v), torch.tensor(dy))
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, return_saved=True)
    for actual, wanted in zip(fastbn.batch_norm_backward(dy, saved, needs=BOTH)[3:], expected, strict=True):
        np.testing.assert_allclose(actual, wanted.numpy(), rtol=1e-12)


def test_after_inference_in_place(rng):
    x, dy, mean, var, gamma, beta = frozen_case(rng, (60, 5), dtype=np.float64, param_dtype=np.float64)
    original = x.copy()
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, out=x, return_saved=True)
    check(*fastbn.batch_norm_backward(dy, saved, needs=BOTH)[3:], original, dy, mean, var, gamma)


def test_after_inference_in_place_with_a_zero_gamma_dmean_alone_can_be_had(rng):
    x, dy, mean, var, gamma, beta = frozen_case(rng, (60, 5))
    gamma[2] = 0
    original = x.copy()
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, out=x, return_saved=True)
    dmean, dvar = fastbn.batch_norm_backward(dy, saved, needs="dmean")[3:]
    assert dvar is None and dmean[2] == 0
    check(dmean, None, original, dy, mean, var, gamma)
    with pytest.raises(RuntimeError, match="gamma is 0 for feature 2"):
        fastbn.batch_norm_backward(dy, saved, needs="dvar")


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0)], ids=str)
def test_an_empty_batch(shape):
    x = np.empty(shape, np.float32)
    _, saved = fastbn.batch_norm_inference(x, np.zeros(3), np.ones(3), return_saved=True)
    dmean, dvar = fastbn.batch_norm_backward(x, saved, needs=BOTH)[3:]
    np.testing.assert_array_equal(dmean, np.zeros(3))
    np.testing.assert_array_equal(dvar, np.zeros(3))


def test_nan_stays_in_its_feature(rng):
    x, dy, mean, var, gamma, beta = frozen_case(rng, (60, 5))
    x[7, 1], var[3] = np.nan, -1
    _, saved = fastbn.batch_norm_inference(x, mean, var, gamma, beta, return_saved=True)
    dmean, dvar = fastbn.batch_norm_backward(dy, saved, needs=BOTH)[3:]
    np.testing.assert_array_equal(np.isnan(dmean), [False, False, False, True, False])
    np.testing.assert_array_equal(np.isnan(dvar), [False, True, False, True, False])


@pytest.mark.parametrize("name", BOTH)
def test_statistics_of_the_batch_are_no_arguments(rng, name):
    x, dy, _, _, gamma, beta = frozen_case(rng, (60, 5))
    _, saved = fastbn.batch_norm_training(x, gamma, beta)
    with pytest.raises(ValueError, match=f"'{name}'.*part of dx.*batch_norm_inference"):
        fastbn.batch_norm_backward(dy, saved, needs=("dx", name))
    with pytest.raises(ValueError, match="'dstd', expected some of dx, dgamma, dbeta, dmean, dvar"):
        fastbn.batch_norm_backward(dy, saved, needs="dstd")
