"""Section 5: one real mini-batch through a batch norm layer, forward in five steps and backward, every number of it."""
import copy
import functools
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

import fastbn
from fastbn.demo.network import softmax_cross_entropy
from fastbn.explain import digits
from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import GREEN, new_figure, styled

STEPS = 22  # of training before, one epoch: so gamma, beta and the moving averages are no longer what they started as
LAYER = 1  # the second of the three batch norm layers
IMAGES, SHOWN = 10, 12  # the mini-batch, and the features of which there are pictures
DIVERGING, POSITIVE = "RdBu_r", "viridis"
ROW, TITLE = 0.155, 0.3  # inches: the height of a matrix's row, and of a title with the space around it


class MiniBatch(NamedTuple):
    """A layer and what training gives it in one step.

    bn: the fastbn.BatchNorm, before the step; x: (N, C) float32, its input; dy: (N, C) float32, the gradient of the loss by
    its output; labels: (N,) the digits that the images show.
    """

    bn: fastbn.BatchNorm
    x: np.ndarray
    dy: np.ndarray
    labels: np.ndarray


def mini_batch(seed, *, steps=STEPS, images=IMAGES):
    """A MiniBatch of that many images in the demo's network, which was trained for so many steps; free to change."""
    return MiniBatch(*map(copy.copy, _mini_batch(seed, steps, images)))


@functools.lru_cache(maxsize=4)
def _mini_batch(seed, steps, images):
    network, data = digits.build("before", fastbn.BatchNorm, seed=seed), digits.load(seed)
    digits.train(network, seed=seed, steps=steps)
    bn = network.norms()[LAYER]
    before = copy.copy(bn)
    chosen = np.random.default_rng([seed, 5]).choice(len(data.train_images), images, replace=False)
    x, dy = _through(network, bn, data.train_images[chosen], data.train_labels[chosen])
    return MiniBatch(before, x, dy, data.train_labels[chosen])


def _through(network, bn, images, labels):
    """(what bn gets in the forward pass, what it gets in the backward pass of the loss)"""
    before, after, place = digits.Listener(), digits.Listener(), network.layers.index(bn)
    network.layers[place:place + 1] = before, bn, after
    with digits.one_thread():
        network.backward(softmax_cross_entropy(network.forward(images), labels)[1])
    return before.x, after.dy


def highlighted(x):
    """The shown feature whose mean is furthest from 0, in standard deviations: there the layer changes most."""
    moments = fastbn.moments(x[:, :SHOWN])
    return int(np.argmax(np.abs(moments.mean) / moments.var() ** 0.5))


def make(settings):
    forward = f"""import fastbn
from fastbn.explain import five_steps

bn, x, dy, labels = five_steps.mini_batch(seed={settings.seed})  # step 1: x, of a layer
moments, before = fastbn.moments(x), bn.state_dict()               # step 2
normalized = fastbn.batch_norm_inference(                          # step 3, alone
    x, moments.mean, moments.var(), eps=bn.eps)
y = bn(x)     # all the steps: y is step 4, bn.running_mean and so on step 5
figure = five_steps.draw_forward(
    labels, x, moments, normalized, y, before, bn.state_dict())"""
    backward = f"""import fastbn
from fastbn.explain import five_steps

bn, x, dy, labels = five_steps.mini_batch(seed={settings.seed})
y, saved = fastbn.batch_norm_training(x, bn.gamma, bn.beta, eps=bn.eps)
dx, dgamma, dbeta = fastbn.batch_norm_backward(dy, saved)
figure = five_steps.draw_backward(labels, x, dy, dgamma, dbeta, dx)"""
    values, gradients = run_code(forward), run_code(backward)
    feature = highlighted(values["x"])
    forward_picture = Picture(
        code=forward, values=values, alt=_forward_alt(values, feature),
        caption=f"The five steps on one mini-batch. A column is a feature, the first {SHOWN} of {values['x'].shape[1]}; a "
                f"row of a matrix is an image, named by the digit it shows. Feature {feature} is framed.")
    backward_picture = Picture(
        code=backward, values=gradients, alt=_backward_alt(gradients, feature),
        caption=f"The way back through the same layer, for the same images and features. Feature {feature} is framed.")
    return Section("The five steps on one real mini-batch", (
        _opening(values), forward_picture, _highlight(values, feature), _forward_table(values, feature),
        _moving(values, feature), _backward_text(), backward_picture, _backward_table(values, gradients, feature),
        _sums(gradients, feature)))


# ---- pictures ----

class Row(NamedTuple):
    """A heat map: rows of `values` are named by `names`; those of one scale have the same colours; `bar`: (a scale, its
    title) whose colour bar stands at the right.
    """

    title: str
    values: np.ndarray
    names: tuple  # of strings, or empty
    scale: str
    bar: tuple | None = None


@styled
def draw_forward(labels, x, moments, normalized, y, before, after):
    """Heat maps of the five steps, one under the other, with the same features in the same columns.

    labels: (N,), the rows' names; x, normalized, y: (N, C); moments: of x; before, after: the layer's state_dict() on
    either side of the step.
    """
    moving = {name: np.stack([before[name], after[name]]) for name in ("running_mean", "running_var")}
    sides, shape, outputs = ("before", "after"), moments.mean.shape, ("y", "normalized, beta, y")
    return _draw_rows(highlighted(x), (
        Row(f"1  activations x, {x.shape}", x, labels, "x", ("x", "x, means")),
        Row(f"2  mean over the batch, {shape}", moments.mean, (), "x"),
        Row(f"2  variance over the batch, {shape}", moments.var(), (), "variance", ("variance", "variances")),
        Row(f"3  normalized = (x - mean) / sqrt(var + eps), {normalized.shape}", normalized, labels, "y", outputs),
        Row(f"4  gamma, {shape}", before["gamma"], (), "gamma"),
        Row(f"4  beta, {shape}", before["beta"], (), "y", ("gamma", "gamma")),
        Row(f"4  output y = normalized * gamma + beta, {y.shape}", y, labels, "y", outputs),
        Row(f"5  moving mean, {shape}", moving["running_mean"], sides, "x"),
        Row(f"5  moving variance, {shape}", moving["running_var"], sides, "variance")))


@styled
def draw_backward(labels, x, dy, dgamma, dbeta, dx):
    """Heat maps of the gradients; of x it takes only which feature is framed, the one that draw_forward frames."""
    return _draw_rows(highlighted(x), (
        Row(f"dy, the gradient by the output, {dy.shape}", dy, labels, "dy", ("dy", "dy")),
        Row(f"dbeta = sum of dy, {dbeta.shape}", dbeta, (), "sums"),
        Row(f"dgamma = sum of dy * normalized, {dgamma.shape}", dgamma, (), "sums", ("sums", "sums")),
        Row(f"dx, the gradient by the input, {dx.shape}", dx, labels, "dx", ("dx", "dx"))))


def _draw_rows(feature, rows):
    heights = [len(np.atleast_2d(row.values)) for row in rows]
    figure, panels = new_figure(len(rows), 1, height=ROW * sum(heights) + TITLE * len(rows) + 0.4, sharex=True,
                                gridspec_kw={"height_ratios": heights})
    figure.get_layout_engine().set(rect=(0, 0, 0.87, 1))  # the colour bars have the rest
    images = {}
    for axes, row in zip(panels, rows):
        colours = _colours([other.values for other in rows if other.scale == row.scale])
        shown = np.atleast_2d(row.values)[:, :SHOWN]
        images[row.scale] = axes.imshow(shown, aspect="auto", interpolation="nearest", **colours)
        axes.set_title(row.title, loc="left", fontsize=9.5, pad=3, y=1)
        _finish(axes, row.names, feature)
    for axes, row, height in zip(panels, rows, heights):
        if row.bar is not None:
            _add_bar(figure, axes, images[row.bar[0]], row.bar[1], height)
    panels[-1].set_xticks(range(SHOWN))
    panels[-1].tick_params(axis="x", length=2)
    panels[-1].set_xlabel("feature")
    return figure


def _colours(arrays):
    """The limits of a scale: what is never negative begins at 0 or its least, the rest has 0 in its middle."""
    shown = [np.atleast_2d(values)[:, :SHOWN] for values in arrays]
    least, greatest = min(values.min() for values in shown), max(values.max() for values in shown)
    if least >= 0:
        return {"cmap": POSITIVE, "vmin": least, "vmax": greatest}
    edge = max(-least, greatest)
    return {"cmap": DIVERGING, "vmin": -edge, "vmax": edge}


def _finish(axes, names, feature):
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    bottom, top = axes.get_ylim()
    axes.plot(feature + 0.5 * np.array([-1, 1, 1, -1, -1]), [bottom, bottom, top, top, bottom], color=GREEN, linewidth=2.5,
              clip_on=False, solid_joinstyle="miter")


def _add_bar(figure, axes, image, title, height):
    """Beside a matrix as high as that; beside the lower one of two single rows as high as both."""
    bounds = (1.02, 0, 0.02, 1 if height > 1 else 2 + TITLE / ROW)
    inset = axes.inset_axes(bounds)
    inset.grid(False)
    bar = figure.colorbar(image, cax=inset)
    inset.set_in_layout(False)
    bar.outline.set_visible(False)
    bar.set_label(title, fontsize=9)
    bar.ax.tick_params(labelsize=9, length=2)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5 if height > 1 else 3))


# ---- text and tables ----

def _opening(values):
    x, bn = values["x"], values["bn"]
    return Text(
        "This is one training step of the demo's network, seen from its second batch norm layer, after {five_steps_before} "
        "steps of training: {five_steps_images} images of digits, {five_steps_features} features. All five steps are one "
        "call, `bn(x)`. Taken apart: (1) take the activations x of the layer before; (2) take each feature's mean and "
        "variance over the batch; (3) normalize, so that every column has mean 0 and variance 1 (a little less by eps, "
        "{five_steps_eps}); (4) scale by gamma and shift by beta; (5) move the moving averages a little towards the "
        "batch's.",
        five_steps_before=Number(STEPS), five_steps_images=Number(x.shape[0]), five_steps_features=Number(x.shape[1]),
        five_steps_eps=Number(bn.eps, f"{bn.eps:g}"))


def _highlight(values, feature):
    x, moments, before = values["x"], values["moments"], values["before"]
    numbers = {"mean": moments.mean, "var": moments.var(), "gamma": before["gamma"], "beta": before["beta"]}
    image = int(np.argmax(np.abs(x[:, feature] - moments.mean[feature])))
    mean = _number(moments.mean[feature])
    subtrahend = Number(mean.value, f"({mean})" if mean.value < 0 else None)
    return Text(
        "Feature {five_steps_feature} in numbers. Its mean over the batch is {five_steps_mean} and its variance "
        "{five_steps_var}; it has gamma {five_steps_gamma} and beta {five_steps_beta}. The image furthest from the mean, "
        "number {five_steps_image}: ({five_steps_x} - {five_steps_mean_again}) / sqrt({five_steps_var_again} + eps) = "
        "{five_steps_normalized}, and that times gamma plus beta is {five_steps_y}.",
        five_steps_feature=Number(feature), five_steps_image=Number(image),
        five_steps_mean_again=subtrahend, five_steps_var_again=_number(moments.var()[feature]),
        **{f"five_steps_{name}": _number(values[name][image, feature]) for name in ("x", "normalized", "y")},
        **{f"five_steps_{name}": _number(array[feature]) for name, array in numbers.items()})


def _forward_table(values, feature):
    x, mean = values["x"], values["moments"].mean
    columns = {"x": x, "centred": x - mean, "normalized": values["normalized"], "y": values["y"]}
    return _column_table(f"Feature {feature} of every image, from activation to output",
                         values["labels"], ("x", "x - mean", "normalized", "output y"), columns, feature)


def _column_table(caption, labels, headings, columns, feature):
    rows = [(str(image), str(label), *((f"five_steps_{name}_{image}", _number(array[image, feature]))
                                       for name, array in columns.items())) for image, label in enumerate(labels)]
    return named_table(caption, ("image", "digit", *headings), rows)


def _moving(values, feature):
    bn, before, moments = values["bn"], values["before"], values["moments"]
    return Text(
        "Step 5 for the same feature, with momentum {five_steps_momentum} as the weight of the old average: the moving mean "
        "was {five_steps_mean_old} and is {five_steps_mean_new}; the moving variance was {five_steps_var_old} and is "
        "{five_steps_var_new}. It takes the unbiased variance, {five_steps_var_unbiased}: the sum of squares divided by "
        "one less than the number of images.",
        five_steps_momentum=Number(bn.momentum), five_steps_var_unbiased=_number(moments.var(ddof=bn.ddof)[feature]),
        five_steps_mean_old=_number(before["running_mean"][feature]), five_steps_mean_new=_number(bn.running_mean[feature]),
        five_steps_var_old=_number(before["running_var"][feature]), five_steps_var_new=_number(bn.running_var[feature]))


def _backward_text():
    return Text(
        "Learning goes the other way: dy says how the loss changes with each output. What `fastbn.batch_norm_backward` "
        "makes of it: dbeta and dgamma, by which beta and gamma learn, and dx, which the layer before learns from: "
        "`dx = gamma / sqrt(var + eps) * (dy - (dbeta + normalized * dgamma) / N)`. The part taken away in the brackets is "
        "the way that leads through mean and variance, which every image of the batch had a share in.")


def _backward_table(values, gradients, feature):
    dy = gradients["dy"]
    columns = {"dy": dy, "dy_normalized": dy * values["normalized"], "dx": gradients["dx"]}
    return _column_table(f"Feature {feature} of every image on the way back", values["labels"],
                         ("dy", "dy * normalized", "dx"), columns, feature)


def _sums(gradients, feature):
    sums = {"dbeta": gradients["dbeta"][feature], "dgamma": gradients["dgamma"][feature],
            "dx_sum": gradients["dx"][:, feature].sum(dtype=np.float64)}
    return Text(
        "The first column adds up to dbeta, {five_steps_dbeta}, the second to dgamma, {five_steps_dgamma}. The last adds up "
        "to 0, but for rounding ({five_steps_dx_sum}): to add the same to a feature of every image changes nothing, since "
        "its mean is taken away again.",
        **{f"five_steps_{name}": _number(value) for name, value in sums.items()})


def _number(value):
    return Number(float(value), f"{value:.3g}")


def _forward_alt(values, feature):
    x, y, moments = values["x"], values["y"], values["moments"]
    return (f"Nine heat maps, one under the other, of {len(x)} images and {SHOWN} features: x, mean, variance, normalized, "
            f"gamma, beta, y, moving mean and variance. Feature {feature}, framed, has mean {moments.mean[feature]:.3g} and "
            f"variance {moments.var()[feature]:.3g}; its outputs go from {y[:, feature].min():.3g} to "
            f"{y[:, feature].max():.3g}.")


def _backward_alt(gradients, feature):
    dx, dy = gradients["dx"][:, feature], gradients["dy"][:, feature]
    return (f"Four heat maps: dy, dbeta, dgamma, dx. In feature {feature}, framed, dy goes from {dy.min():.3g} to "
            f"{dy.max():.3g} and dx from {dx.min():.3g} to {dx.max():.3g}.")
