"""Section 4: the four arrays of a batch norm layer, gamma, beta, running_mean and running_var, in a trained network."""
import numpy as np

from fastbn.explain.section import Number, Picture, Section, Text, named_table, run_code
from fastbn.explain.style import BLUE, GREEN, INK, ORANGE, new_figure, styled

STEPS = 440
ARRAYS = {  # name: (what it is called in the text, what it starts with, what changes it)
    "gamma": ("scale", 1, "gradient"),
    "beta": ("shift", 0, "gradient"),
    "running_mean": ("moving mean", 0, "batches"),
    "running_var": ("moving variance", 1, "batches"),
}
GAP = 12  # features' widths between two layers
COLOURS = (BLUE, ORANGE, GREEN)


def make(settings):
    code = f"""import fastbn
from fastbn.explain import digits, parameters

network = digits.build("before", fastbn.BatchNorm, seed={settings.seed})
digits.train(network, seed={settings.seed}, steps={STEPS})
states = [bn.state_dict() for bn in network.norms()]
figure = parameters.draw_states(states)"""
    values = run_code(code)
    states = values["states"]
    picture = Picture(
        code=code, values=values, alt=_alt(states),
        caption=f"The four arrays of the three layers after {STEPS} steps: a bar for every feature, from the value that it "
                "started with (the line) to where it is now.")
    return Section("The parameters of a layer",
                   (_opening(values["network"], states), _table(states), picture, _closing(states)))


@styled
def draw_states(states):
    """A bar for every number in the layers' states (from BatchNorm.state_dict()), from its start to its value; by array."""
    figure, rows = new_figure(len(ARRAYS), 1, height=6.4, sharex=True)
    for axes, (name, (title, start, _)) in zip(rows, ARRAYS.items()):
        for left, state, colour in zip(_lefts(states), states, COLOURS):
            axes.plot(*_bars(left, start, state[name]), color=colour, linewidth=1.1, solid_capstyle="butt")
        axes.axhline(start, color=INK, linewidth=0.8)
        axes.set_title(f"{name}: {title}, starts at {start}", loc="left")
        axes.set_ylabel("value")
        axes.grid(False, axis="x")
    rows[0].set_xlim(-GAP / 2, _lefts(states)[-1] + states[-1]["gamma"].size + GAP / 2)
    _name_layers(rows[-1], states)
    figure.align_ylabels()
    return figure


def _lefts(states):
    """Where each layer's features begin on the horizontal axis."""
    widths = [state["gamma"].size + GAP for state in states]
    return np.cumsum([0, *widths[:-1]])


def _bars(left, start, values):
    """One line through all bars, with gaps between."""
    positions = left + np.arange(values.size)
    nothing = np.full(values.size, np.nan)
    return (np.column_stack([positions, positions, nothing]).ravel(),
            np.column_stack([np.full(values.size, start), values, nothing]).ravel())


def _name_layers(axes, states):
    sizes = [state["gamma"].size for state in states]
    axes.set_xticks([left + (size - 1) / 2 for left, size in zip(_lefts(states), sizes)],
                    [f"layer {layer}: features 0 to {size - 1}" for layer, size in enumerate(sizes, 1)])
    axes.tick_params(axis="x", length=0)


def count_numbers(network):
    """(those that batch norm learns, all that the network learns, those that batch norm keeps as moving averages)"""
    norms = network.norms()
    learned = sum(value.size for bn in norms for _, value, _ in bn.parameters())
    return learned, sum(value.size for _, value, _ in network.parameters()), sum(2 * bn.num_features for bn in norms)


def _opening(network, states):
    learned, total, moving = count_numbers(network)
    shape = f"({states[0]['gamma'].size},)"
    return Text(
        "A batch norm layer owns four arrays, each with one number for every feature. `gamma` and `beta` are learned by "
        "gradient descent, as weights are: they let a feature have any spread and any centre after all. The moving mean and "
        "the moving variance (`running_mean`, `running_var`) are not learned: every training batch moves them a little, and "
        "inference normalizes by them. This network of three hidden layers has three batch norm layers, with arrays of "
        f"shape {shape}. "
        "It learns {parameters_total} numbers, of which {parameters_learned} are gammas and betas, {parameters_share}; "
        "{parameters_moving} more are moving averages.",
        parameters_total=Number(total, f"{total:,}"), parameters_learned=Number(learned, f"{learned:,}"),
        parameters_share=Number(learned / total, f"{100 * learned / total:.1f} %"),
        parameters_moving=Number(moving, f"{moving:,}"))


def _table(states):
    rows = []
    for layer, state in enumerate(states, 1):
        for name, (_, start, changed_by) in ARRAYS.items():
            summary = {"least": state[name].min(), "mean": state[name].mean(dtype=np.float64), "greatest": state[name].max()}
            rows.append((str(layer), name, str(state[name].shape), changed_by, str(start),
                         *((f"parameters_{name}_{word}_{layer}", Number(float(value), f"{value:.3f}"))
                           for word, value in summary.items())))
    return named_table(f"What the layers hold after {STEPS} training steps",
                       ("layer", "array", "shape", "changed by", "starts at", "least", "mean", "greatest"), rows)


def _closing(states):
    batches = states[0]["num_batches_tracked"]
    gamma, beta = (np.concatenate([state[name] for state in states]) for name in ("gamma", "beta"))
    furthest = float(max(np.abs(gamma - 1).max(), np.abs(beta).max()))
    return Text(
        "The fifth thing in a layer's state is a counter, `num_batches_tracked`: {parameters_batches} batches here. With "
        "gamma 1 and beta 0 the layer would only standardize; the one that training took furthest from there is now "
        "{parameters_furthest} away.",
        parameters_batches=Number(int(batches), str(batches)), parameters_furthest=Number(furthest, f"{furthest:.2f}"))


def _alt(states):
    parts = []
    for name, (title, start, _) in ARRAYS.items():
        values = np.concatenate([state[name] for state in states])
        parts.append(f"{name}, the {title}, which starts at {start}, is now {values.min():.2f} to {values.max():.2f}")
    return f"Four bar charts of {len(states)} layers of {states[0]['gamma'].size} features each. " + "; ".join(parts) + "."
