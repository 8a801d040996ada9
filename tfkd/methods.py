"""The names of the papers' methods, and the matches that they stand for.

The only such table: each method is one function below, whose arguments are
its published settings.
"""

import difflib
import inspect
import re
from typing import NamedTuple

import keras

from tfkd import losses
from tfkd.matches import JacobianMatch, Match
from tfkd.matches.match import as_pairs
from tfkd.matches.projectors import fitted_convolution
from tfkd.trace import outline

# Width of the space that penultimate features of different width share.
_COMMON_WIDTH = 128


class Method(NamedTuple):
    """A method of the papers, accepted wherever `matches` is.

    Attributes:
        name: Its name, "ipot+kd" say.
        matches: List of its matches, with their weights.
        label_weight: Weight of the label loss.
    """

    name: str
    matches: list
    label_weight: float


def build(name, *, student, teacher, **overrides):
    """The matches of a method, with its published weights.

    Args:
        name: One of `NAMES`, or a sum of some: "ipot+kd". In a sum each part
            keeps its weight and labels have weight 1; kd joins with weight 1
            instead of its own 0.9 beside labels at 0.1.
        student, teacher: Built Keras models. Methods that compare features
            look for the layers that every network of `tfkd.models` has
            (stage1, stage2, ..., features); for others pass `at`.
        **overrides: Settings of the parts, for instance `temperature=2.0`.
            One that several parts have is given by part:
            `kd={"weight": 0.5}`.

    Returns:
        A `Method`.

    Raises:
        ValueError: If a name or a setting is unknown or ambiguous, or a
            layer is missing.

    Example:

    >>> method = tfkd.methods.build("kd", student=student, teacher=teacher)
    >>> [match.weight for match in method.matches], method.label_weight
    ([0.9], 0.1)
    """
    if not isinstance(name, str):
        raise ValueError(
            "Invalid value for argument `name`. Expected one of "
            f"{NAMES} or a sum of some. Received: name={name!r}"
        )
    for model, role in ((student, "student"), (teacher, "teacher")):
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"Invalid value for argument `{role}`. Expected a built "
                f"Keras model. Received: {role}={model!r}"
            )
    parts = name.split("+")
    for part in parts:
        if part not in _METHODS:
            nearest = difflib.get_close_matches(part, NAMES, n=1)
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            raise ValueError(
                f"Unknown method '{part}'. Expected one of {NAMES}, or a sum "
                f'such as "ipot+kd".{hint}'
            )
    if len(set(parts)) != len(parts):
        raise ValueError(f"Method '{name}' names a part twice.")
    settings = _distribute(parts, overrides)
    matches = []
    for part in parts:
        options = settings[part]
        if part == "kd" and len(parts) > 1:
            options = {"weight": 1.0, **options}
        matches += _METHODS[part](student, teacher, **options)
    return Method(name, matches, 0.1 if parts == ["kd"] else 1.0)


def _ce(student, teacher):
    """Cross-entropy with the labels alone: the student without a teacher."""
    return []


def _kd(student, teacher, *, temperature=4.0, weight=0.9):
    """Softened class probabilities. Hinton et al. 2015."""
    loss = losses.SoftTargets(temperature=temperature)
    return [Match(loss, weight=weight, name="kd")]


def _activations(student, teacher, *, weight=1.0):
    """Squared error between logits. Srinivas & Fleuret 2018, section 6.1."""
    return [Match(losses.SquaredError(), weight=weight, name="activations")]


def _jacobian(student, teacher, *, of="label", weight=1.0):
    """Jacobians of the outputs. Srinivas & Fleuret 2018, proposition 1."""
    return [JacobianMatch(of=of, weight=weight, name="jacobian")]


def _fitnet(student, teacher, *, at="stage2", weight=100.0):
    """Features of one stage through a trained regressor on the student.

    Romero et al. 2015, with the weight of Tian et al. 2020. The regressor is
    a convolution that fits size and width, normalised and rectified like the
    teacher's feature.
    """
    pairs = as_pairs(at)
    regressors = [
        keras.Sequential(
            [
                fitted_convolution(ours, theirs),
                keras.layers.BatchNormalization(
                    momentum=0.9, epsilon=1e-5, dtype="float32"
                ),
                keras.layers.ReLU(dtype="float32"),
            ]
        )
        for ours, theirs in _shapes(pairs, student, teacher)
    ]
    match = Match(
        "mse", at=pairs, projector=regressors, weight=weight, name="fitnet"
    )
    return [match]


def _ipot(student, teacher, *, at=None, cost="cosine", beta=None, weight=1.0):
    """Optimal transport between all stages. Lohit & Jones 2020.

    Scale-free by default; `beta="paper"` for the solver's settings as
    printed there.
    """
    loss = losses.OptimalTransport(cost=cost, beta=beta)
    return [_transport(loss, "ipot", student, teacher, at, weight)]


def _remd(student, teacher, *, at=None, cost="cosine", weight=1.0):
    """Relaxed earth mover's distance between all stages, same paper."""
    loss = losses.RelaxedEarthMover(cost=cost)
    return [_transport(loss, "remd", student, teacher, at, weight)]


def _gaussian_w2(
    student, teacher, *, at="features", covariance="full", weight=1e-4
):
    """Wasserstein distance of features as Gaussians. Montesuma 2025.

    Summed over dimensions, as printed.
    """
    loss = losses.GaussianWasserstein(covariance)
    return [_moments(loss, "gaussian_w2", student, teacher, at, weight)]


def _gaussian_kl(
    student,
    teacher,
    *,
    at="features",
    covariance="full",
    direction="student||teacher",
    ridge=0.1,
    weight=1e-4,
):
    """Divergence of features as Gaussians, same paper.

    Summed over dimensions, as printed.
    """
    loss = losses.GaussianKL(
        covariance, direction=direction, ridge=ridge, per_dimension=False
    )
    return [_moments(loss, "gaussian_kl", student, teacher, at, weight)]


def _mmd(student, teacher, *, at="features", kernel="gaussian", weight=1.0):
    """Maximum mean discrepancy of features. Gretton et al. 2012."""
    loss = losses.MaximumMeanDiscrepancy(kernel)
    return [_moments(loss, "mmd", student, teacher, at, weight)]


_METHODS = {
    "ce": _ce,
    "kd": _kd,
    "activations": _activations,
    "jacobian": _jacobian,
    "fitnet": _fitnet,
    "ipot": _ipot,
    "remd": _remd,
    "gaussian-w2": _gaussian_w2,
    "gaussian-kl": _gaussian_kl,
    "mmd": _mmd,
}
NAMES = tuple(_METHODS)


def _distribute(parts, overrides):
    """Part -> its own overrides."""
    settings = {part: {} for part in parts}
    for key, value in overrides.items():
        # A keyword has no hyphen.
        if key.replace("_", "-") in settings:
            if not isinstance(value, dict):
                raise ValueError(
                    f"Invalid value for argument `{key}`. Expected a dict of "
                    f"settings of '{key}'. Received: {key}={value!r}"
                )
            settings[key.replace("_", "-")].update(value)
            continue
        owners = [part for part in parts if key in _options(part)]
        if len(owners) != 1:
            known = {part: _options(part) for part in parts}
            raise ValueError(
                f"Setting `{key}` belongs to {owners or 'no part'} of "
                f"'{'+'.join(parts)}', whose settings are {known}. "
                + (
                    f"Give it by part: {owners[0].replace('-', '_')}={{...}}."
                    if owners
                    else ""
                )
            )
        settings[owners[0]][key] = value
    for part in parts:
        for key in settings[part]:
            if key not in _options(part):
                raise ValueError(
                    f"Method '{part}' has no setting `{key}`. Expected one "
                    f"of {_options(part)}."
                )
    return settings


def _options(part):
    signature = inspect.signature(_METHODS[part])
    return [
        p.name
        for p in signature.parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]


def _transport(loss, name, student, teacher, at, weight):
    """One match over all stages and the penultimate features.

    Where shapes differ, the teacher's map goes through a convolution to the
    student's shape, and both penultimate vectors to a common width.
    """
    pairs = as_pairs(_all_stages(student, teacher) if at is None else at)
    ours, theirs = [], []
    for source, target in _shapes(pairs, student, teacher):
        if source == target:
            ours.append(None)
            theirs.append(None)
        elif len(source) == len(target) == 2:
            ours.append(keras.layers.Dense(_COMMON_WIDTH, dtype="float32"))
            theirs.append(keras.layers.Dense(_COMMON_WIDTH, dtype="float32"))
        else:
            ours.append(None)
            theirs.append("conv")
    return Match(
        loss,
        at=pairs,
        projector=ours,
        teacher_projector=theirs,
        weight=weight,
        name=name,
    )


def _moments(loss, name, student, teacher, at, weight):
    """One match of batches' distributions, in the teacher's units.

    Where widths differ, the student's signal goes through a trained layer.
    The teacher's does not: both could be made small then.
    """
    pairs = as_pairs(at)
    projectors = []
    for source, target in _shapes(pairs, student, teacher):
        kind = "dense" if len(source) == 2 else "conv"
        projectors.append(None if source == target else kind)
    return Match(loss, at=pairs, projector=projectors, weight=weight, name=name)


def _all_stages(student, teacher):
    """Names of the stages and features that both networks have."""
    common = {layer.name for layer in student.layers}
    common &= {layer.name for layer in teacher.layers}
    stages = sorted(
        (name for name in common if re.fullmatch(r"stage\d+", name)),
        key=lambda name: int(name.removeprefix("stage")),
    )
    if not stages or "features" not in common:
        raise ValueError(
            f"Student '{student.name}' and teacher '{teacher.name}' have no "
            "common layers named stage1, stage2, ..., features. Say where to "
            'compare them: at=[("student layer", "teacher layer"), ...].'
        )
    return [*stages, "features"]


def _shapes(pairs, student, teacher):
    """Shapes of the student's and the teacher's signal of each pair."""
    ours = outline(student, [s for s, _ in pairs if s is not None])
    theirs = outline(teacher, [t for _, t in pairs if t is not None])
    return [(ours.signals[s].shape, theirs.signals[t].shape) for s, t in pairs]
