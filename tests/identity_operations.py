"""What identity_script.py computes, by name: functions of a Case and a number of threads that return arrays.

OPERATIONS are for every layout. TILED and VARIANTS are training calls in other ways: those that the core computes tile
by tile, so that shapes matter in ways of their own, and others, which are made of such calls or differ from one in
little. ACTIVATIONS are single activations, of a Case whose x is what is activated.
"""

from itertools import combinations

import numpy as np

import fastbn
from activations_reference import NAMES

GRADIENTS = ("dx", "dgamma", "dbeta")
SUBSETS = [subset for size in (3, 2, 1) for subset in combinations(GRADIENTS, size)]
SLOPES = {"leaky_relu": 0.1, "elu": 1.3}


def moments(case, threads):
    result = fastbn.moments(case.x, axis=case.axis, num_threads=threads)
    return result.mean, result.M2


def inference(case, threads):
    return (case.inference(threads),)


def inference_plain(case, threads):
    return (fastbn.batch_norm_inference(case.x, case.mean, case.var, axis=case.axis, num_threads=threads),)


def relu_of(with_residual):
    def relu(case, threads):
        more = {"activation": "relu", "residual": case.dy if with_residual else None}
        y, saved = case.training(threads, **more)
        return case.inference(threads, **more), y, *fastbn.batch_norm_backward(case.dy, saved, num_threads=threads)

    return relu


def training(case, threads):
    y, saved = case.training(threads)
    return y, saved.mean, saved.var, saved.rstd


def training_plain(case, threads):
    y, saved = fastbn.batch_norm_training(case.x, axis=case.axis, num_threads=threads)
    return y, saved.mean, saved.var, saved.rstd


def training_in_place(case, threads):
    x = np.array(case.x, order="C")
    y, saved = case.training(threads, x=x, out=x)
    return y, saved.mean, saved.var, saved.rstd


def backward_of(needs, frozen):
    def backward(case, threads):
        saved = case.frozen if frozen else case.trained
        return fastbn.batch_norm_backward(case.dy, saved, needs=needs, num_threads=threads)

    return backward


def double_of(frozen):
    def double_backward(case, threads):
        saved = case.frozen if frozen else case.trained
        return fastbn.batch_norm_double_backward(case.ddx, case.mean, case.beta, case.dy, saved, num_threads=threads)

    return double_backward


def layer(case, threads):
    """Two training steps of a layer, then inference: the running averages as well."""
    fastbn.set_num_threads(threads)
    bn = fastbn.BatchNorm(case.features, axis=case.axis, dtype=case.dtype)
    first = bn(case.x)
    dx = bn.backward(case.dy)
    dgamma, dbeta = bn.dgamma.copy(), bn.dbeta.copy()
    bn(case.dy)
    last = bn.eval()(case.x)
    fastbn.set_num_threads(None)
    return first, dx, dgamma, dbeta, bn.running_mean, bn.running_var, last


OPERATIONS = {
    "moments": moments,
    "inference": inference,
    "inference_plain": inference_plain,
    "relu": relu_of(with_residual=False),
    "relu and residual": relu_of(with_residual=True),
    "training": training,
    "training_plain": training_plain,
    "training_in_place": training_in_place,
    **{"backward " + "+".join(needs): backward_of(needs, frozen=False) for needs in SUBSETS},
    **{"frozen " + "+".join(needs): backward_of(needs, frozen=True) for needs in SUBSETS},
    "double backward": double_of(frozen=False),
    "double frozen": double_of(frozen=True),
    "layer": layer,
}


# ---- training in other ways: each function below gives the arguments that make it another one ----

def weights(case):
    return {"weights": case.weights}


def mask(case):
    return {"mask": case.weights > 0.5}


def omit(case):
    """NaN in dy, where x has it, counts as little."""
    x, dy = case.missing
    return {"nan_policy": "omit", "x": x, "dy": dy}


def ghost(case):
    """Three slices of the batch, the last one smaller; of fewer than three entries one for each."""
    return {"ghost_batch_size": len(case.x) // 3 + 1}


def renorm(case):
    return {"renorm": (1.5, 0.5), "running_mean": case.mean, "running_var": case.var}


def residual(case):
    return {"residual": case.residual}


def in_place(case):
    x = np.array(case.x, order="C")
    return {"x": x, "out": x}


def variant_of(*ways, activation=None):
    """A training call and its gradients."""
    def variant(case, threads):
        more = {"activation": activation}
        for way in ways:
            more |= way(case)
        dy = more.pop("dy", case.dy)
        y, saved = case.training(threads, **more)
        batch, y = saved.moments, y.copy() if "out" in more else y
        return (y, saved.mean, saved.var, getattr(saved, "r", None), getattr(saved, "d", None), batch.mean, batch.M2,
                *fastbn.batch_norm_backward(dy, saved, num_threads=threads))

    return variant


TILED = {
    "weights": variant_of(weights),
    "weights relu": variant_of(weights, activation="relu"),
    "omit": variant_of(omit),
    "omit relu": variant_of(omit, activation="relu"),
    "omit weights": variant_of(omit, weights),
    "residual gelu": variant_of(residual, activation="gelu"),
}
VARIANTS = {
    "mask": variant_of(mask),
    "omit weights gelu": variant_of(omit, weights, activation="gelu"),
    "ghost": variant_of(ghost),
    "ghost weights": variant_of(ghost, weights),
    "renorm": variant_of(renorm),
    "renorm ghost": variant_of(renorm, ghost),
    "elu": variant_of(activation=("elu", 0.5)),
    "leaky_relu in place": variant_of(in_place, activation=("leaky_relu", 0.25)),
    "residual silu": variant_of(residual, activation="silu"),
    "residual tanh": variant_of(residual, activation="tanh"),
}


# ---- each activation, of numbers of all magnitudes ----

def activation_of(name):
    """The activation of x, and its gradient: an inference whose factor is 1, and whose shift is the zero that changes
    no sign.
    """
    activation = None if name == "identity" else (name, SLOPES[name]) if name in SLOPES else name

    def activate(case, threads):
        zeros = np.zeros(case.features, case.dtype)
        y, saved = fastbn.batch_norm_inference(case.x, zeros, zeros + 0.75, beta=-zeros, eps=0.25, axis=case.axis,
                                               activation=activation, return_saved=True, num_threads=threads)
        return y, fastbn.batch_norm_backward(case.dy, saved, needs="dx", num_threads=threads)[0]

    return activate


ACTIVATIONS = {"activation " + name: activation_of(name) for name in NAMES}
