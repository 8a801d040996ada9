"""Metrics over the epochs, for several runs."""

from tfkd.analysis.figures import check_labelled, panels, styles, tidy
from tfkd.arguments import check_names


def plot_curves(histories, path, *, metrics=None):
    """Draws metrics over the epochs: a panel a metric, a line a run.

    So runs with several weights of one match, say, are compared in what they
    pay for it: label loss, the match's value, accuracy.

    Args:
        histories: Dict, label -> `keras.callbacks.History` or its dict,
            metric -> list with a number for each epoch.
        path: File of the picture, of a type that Matplotlib knows.
        metrics: Names of the metrics, a panel each; None: all that every run
            has, without those that are named after a validation metric.
            Where a run has "val_" and the name too, it is drawn dashed.

    Raises:
        ValueError: If there is no run, no metric, or a metric that a run
            lacks.

    Example:

    ```python
    histories = {
        f"weight {weight:g}": distiller_of(weight).fit(train, epochs=20)
        for weight in (0.0, 0.01, 0.1)
    }
    plot_curves(histories, "weights.png", metrics=["label_loss", "accuracy"])
    ```

    Reference: Montesuma 2025, figure 2.
    """
    check_labelled(histories, "histories")
    runs = {
        label: getattr(history, "history", history)
        for label, history in histories.items()
    }
    for label, run in runs.items():
        if not isinstance(run, dict):
            raise ValueError(
                f"Run '{label}' is neither a `History` nor its dict. "
                f"Received: {run!r}"
            )
    if metrics is None:
        metrics = _common(runs)
    else:
        metrics = check_names(metrics, "metrics")
        _check_metrics(metrics, runs)
    figure, axes = panels(len(metrics))
    for panel, metric in zip(axes, metrics, strict=True):
        for (label, run), (line, color) in zip(
            runs.items(), styles(), strict=False
        ):
            epochs = range(1, len(run[metric]) + 1)
            panel.plot(epochs, run[metric], line, color=color, label=label)
            if f"val_{metric}" in run:
                panel.plot(
                    epochs, run[f"val_{metric}"], "--", color=color, alpha=0.6
                )
        tidy(panel, title=metric, xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False)
    if any(
        f"val_{metric}" in run for metric in metrics for run in runs.values()
    ):
        figure.supxlabel("dashed: validation", fontsize="small", color="0.4")
    figure.savefig(path, dpi=140)


def _common(runs):
    """Names of the metrics that every run has, in the order of the first."""
    first, *others = runs.values()
    metrics = [
        metric
        for metric in first
        if not metric.startswith("val_")
        and all(metric in run for run in others)
    ]
    if not metrics:
        raise ValueError("The runs have no metric in common.")
    return metrics


def _check_metrics(metrics, runs):
    for metric in metrics:
        for label, run in runs.items():
            if metric not in run:
                raise ValueError(
                    f"Run '{label}' has no metric '{metric}'. It has "
                    f"{sorted(run)}."
                )
