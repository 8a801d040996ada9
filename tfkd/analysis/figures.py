"""What the analyses have in common."""

import itertools

import keras

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.")


def panels(count, *, width=5.0, height=4.2):
    """A figure with panels side by side.

    Args:
        count: Number of panels.
        width: Of a panel, in inches.
        height: Of a panel, in inches.

    Returns:
        A `matplotlib.figure.Figure` and a list of its axes.
    """
    # Deferred, so that measuring does without it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(count * width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def tidy(axes, **labels):
    """Removes ornaments and sets labels.

    Args:
        axes: A panel.
        **labels: As of `matplotlib.axes.Axes.set`.
    """
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def styles():
    """Endless pairs (line, colour): all colours, then the next line."""
    return itertools.cycle(itertools.product(LINES, COLORS))


def check_labelled(results, argument):
    """Raises a `ValueError` that names `argument` unless it is a full dict."""
    if not isinstance(results, dict) or not results:
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected a dict, label "
            f"-> result, of at least one. Received: {argument}={results!r}"
        )


def check_networks(**networks):
    """Raises a `ValueError` unless each is a built Keras model."""
    for argument, network in networks.items():
        if not isinstance(network, keras.Model) or not network.built:
            raise ValueError(
                f"Invalid value for argument `{argument}`. Expected a built "
                f"Keras model. Received: {argument}={network!r}"
            )
