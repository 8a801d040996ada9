"""Features of a teacher and a student in one plane."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfkd.analysis.figures import (
    check_labelled,
    check_networks,
    panels,
    tidy,
)
from tfkd.arguments import check_choice, check_count
from tfkd.records import unpack
from tfkd.trace import Trace

_TEACHER, _STUDENT = "#D55E00", "#0072B2"


class FeatureAlignment(NamedTuple):
    """Features of two networks on the same examples, in one plane.

    Attributes:
        teacher: Points, `[examples, 2]`.
        student: Points of the same examples, `[examples, 2]`.
        labels: Of the examples, `[examples]`, or None.
        distance: Mean distance of an example's two features before the
            projection, over the mean distance of the teacher's features from
            their mean. 0: equal; without unit.
    """

    teacher: np.ndarray
    student: np.ndarray
    labels: np.ndarray | None
    distance: float


def feature_alignment(
    student,
    teacher,
    data,
    *,
    at="features",
    projector=None,
    method="pca",
    max_examples=1000,
    seed=0,
):
    """Projects the features of two networks together into one plane.

    The plane is fitted to the features of both networks, so that points of
    one may be compared with points of the other.

    Args:
        student: A built Keras model.
        teacher: A built Keras model of the same inputs.
        data: A `tf.data.Dataset` of batches `(x, y, weights)`, `(x, y)` or
            x; weights are not read.
        at: A layer's name in both networks, or a pair ("student layer",
            "teacher layer"); None: the outputs. Features are flattened.
        projector: Layer that the student's features go through, where their
            width is not the teacher's: that of a match, say.
        method: "pca", the two directions of largest variance; or "tsne",
            which keeps neighbourhoods instead of distances.
        max_examples: Examples that are looked at, the first ones. >= 3.
        seed: Of t-SNE.

    Returns:
        A `FeatureAlignment`.

    Raises:
        ValueError: If an argument is invalid, the features differ in width or
            are not finite, or there are fewer than three examples.

    Reference: KD2M (Montesuma 2025), figure 3.
    """
    check_choice(method, ("pca", "tsne"), "method")
    check_count(max_examples, "max_examples")
    check_networks(student=student, teacher=teacher)
    ours, theirs = _pair(at)
    y_pred, y_true, labels = [], [], []
    for batch in data:
        batch = batch if isinstance(batch, tuple) else (batch,)
        x, y = (*batch, None)[:2]
        signal = _signal(student, x, ours)
        y_pred.append(_flat(projector(signal) if projector else signal))
        y_true.append(_flat(_signal(teacher, x, theirs)))
        labels.append(y)
        if sum(map(len, y_true)) >= max_examples:
            break
    if not y_true:
        raise ValueError("The data are empty.")
    y_pred = np.concatenate(y_pred)[:max_examples]
    y_true = np.concatenate(y_true)[:max_examples]
    if len(y_true) < 3:
        raise ValueError(
            "Expected at least three examples. Received: "
            f"{len(y_true)} of the data, max_examples={max_examples}"
        )
    for name, features in (("student", y_pred), ("teacher", y_true)):
        if not np.all(np.isfinite(features)):
            raise ValueError(
                f"The {name}'s features are not finite: there is NaN or "
                "infinity in them."
            )
    if y_pred.shape != y_true.shape:
        raise ValueError(
            f"The student's features have width {y_pred.shape[1]}, the "
            f"teacher's {y_true.shape[1]}. Pass the layer that maps one to "
            "the other: projector=match.student_projectors[0], say."
        )
    points = _projected(np.concatenate([y_true, y_pred]), method, seed)
    apart = np.linalg.norm(y_pred - y_true, axis=1).mean()
    spread = np.linalg.norm(y_true - y_true.mean(axis=0), axis=1).mean()
    return FeatureAlignment(
        teacher=points[: len(y_true)],
        student=points[len(y_true) :],
        labels=_labels(labels, max_examples),
        distance=float(apart / spread) if spread > 0 else float("nan"),
    )


def plot_feature_alignment(results, path):
    """Draws features of teachers and students, a panel a pair of networks.

    Args:
        results: Dict, label -> `FeatureAlignment`.
        path: File of the picture, of a type that Matplotlib knows.

    Raises:
        ValueError: If there are no results, or the type is unknown.
    """
    check_labelled(results, "results")
    figure, axes = panels(len(results), width=4.4)
    for panel, (label, result) in zip(axes, results.items(), strict=True):
        for name, points, color in (
            ("teacher", result.teacher, _TEACHER),
            ("student", result.student, _STUDENT),
        ):
            panel.scatter(
                *points.T, s=9, color=color, alpha=0.5, lw=0, label=name
            )
        tidy(
            panel,
            title=f"{label}\nmean distance {result.distance:.2f} of the spread",
            xticks=[],
            yticks=[],
        )
    axes[0].legend(frameon=False, markerscale=2)
    figure.savefig(path, dpi=140)


def _pair(at):
    """The student's and the teacher's layer."""
    pair = at if isinstance(at, tuple | list) else (at, at)
    if len(pair) != 2 or not all(
        layer is None or isinstance(layer, str) for layer in pair
    ):
        raise ValueError(
            "Invalid value for argument `at`. Expected a layer's name, a pair "
            f"of names, or None. Received: at={at!r}"
        )
    return pair


def _signal(model, x, layer):
    """A layer's output, as an array."""
    layers = [] if layer is None else [layer]
    return Trace(model, x, layers=layers)[layer].numpy()


def _flat(features):
    features = np.asarray(features)
    return features.reshape(len(features), -1).astype(np.float64)


def _labels(labels, count):
    """Sparse labels `[examples]`, or None where a batch has none."""
    if any(y is None or not tf.is_tensor(unpack(y).label) for y in labels):
        return None
    labels = [unpack(y).label.numpy() for y in labels]
    labels = [
        y.argmax(axis=-1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)
        for y in labels
    ]
    return np.concatenate(labels)[:count]


def _projected(features, method, seed):
    """The features in the plane, `[examples, 2]`."""
    # Deferred, for it takes a second to import.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method == "pca":
        count = min(2, features.shape[1])
        points = PCA(count, svd_solver="full").fit_transform(features)
        return np.pad(points, [(0, 0), (0, 2 - count)])
    perplexity = min(30, (len(features) - 1) / 3)
    tsne = TSNE(2, init="pca", perplexity=perplexity, random_state=seed)
    return tsne.fit_transform(features)
