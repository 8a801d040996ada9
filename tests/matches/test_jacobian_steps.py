"""Each form in a training step: gradients, ways to run, precision, teacher."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from protocol import run

import tfkd

_CROSS_ENTROPY = tfkd.losses.JacobianCrossEntropy
_FORMS = {
    "label": lambda: tfkd.JacobianMatch(),
    "top": lambda: tfkd.JacobianMatch(of="top"),
    "all": lambda: tfkd.JacobianMatch(of="all"),
    "normalized": lambda: tfkd.JacobianMatch(
        tfkd.losses.NormalizedSquaredError()
    ),
    "completed": lambda: tfkd.JacobianMatch(_CROSS_ENTROPY(2.0), of="all"),
    "printed": lambda: tfkd.JacobianMatch(_CROSS_ENTROPY(printed=True)),
    "outputs": lambda: tfkd.JacobianMatch(num_projections=2),
    "inputs": lambda: tfkd.JacobianMatch(num_projections=2, directions="input"),
    "completed outputs": lambda: tfkd.JacobianMatch(
        _CROSS_ENTROPY(), num_projections=2
    ),
    "part": lambda: tfkd.JacobianMatch(of="all", fraction=0.5),
    "frozen": lambda: tfkd.JacobianMatch(batch_statistics="frozen"),
    "batch": lambda: tfkd.JacobianMatch(batch_statistics="batch"),
    "penalty": lambda: tfkd.JacobianPenalty(),
    "penalty of top": lambda: tfkd.JacobianPenalty(of="top"),
    "penalty of all": lambda: tfkd.JacobianPenalty(of="all"),
    "cross-entropy": lambda: tfkd.JacobianPenalty("cross_entropy"),
    "printed cross-entropy": lambda: tfkd.JacobianPenalty(
        "printed_cross_entropy"
    ),
    "penalty outputs": lambda: tfkd.JacobianPenalty(num_projections=2),
    "penalty inputs": lambda: tfkd.JacobianPenalty(
        "cross_entropy", num_projections=2, directions="input"
    ),
    "frozen penalty": lambda: tfkd.JacobianPenalty(
        "cross_entropy", batch_statistics="frozen"
    ),
    "batch penalty": lambda: tfkd.JacobianPenalty(
        "cross_entropy", batch_statistics="batch"
    ),
    "part penalty": lambda: tfkd.JacobianPenalty("cross_entropy", fraction=0.5),
    "noise": lambda: tfkd.InputNoiseMatch(0.1),
    "attention jacobian": lambda: tfkd.AttentionJacobianMatch(
        ["act1", ("stage1", "act1"), "stage2"]
    ),
    "frozen attention": lambda: tfkd.AttentionJacobianMatch(
        "stage1", window="full", batch_statistics="frozen"
    ),
    "attention": lambda: tfkd.Match(
        tfkd.losses.AttentionTransfer(), at=["act1", ("stage1", "act1")]
    ),
    "squared attention": lambda: tfkd.Match(
        tfkd.losses.AttentionTransfer(squared=True), at="stage2"
    ),
}


# === Gradients ===


@pytest.mark.parametrize("normalization", ["batch", "layer", "group"])
def test_gradients_by_weights_are_exact(
    float64, make_network, images, normalization
):
    """Along a random direction, against a central difference.

    With max pooling, whose kinks are further away than the step. Where a
    form reads the training pass, BatchNormalization is in training mode, and
    so it is in the difference.
    """
    student = make_network(
        4, seed=1, name="student", normalization=normalization, pool="max"
    )
    teacher = make_network(3, seed=2, name="teacher", pool="max")
    x, labels = images[0][:4], images[1][:4]
    variables = student.trainable_variables
    start = [variable.numpy() for variable in variables]
    kept = [variable.numpy() for variable in student.non_trainable_variables]
    rng = np.random.default_rng(3)
    direction = [rng.normal(size=value.shape) for value in start]

    def value(match, step):
        for variable, point, along in zip(
            variables, start, direction, strict=True
        ):
            variable.assign(point + step * along)
        for variable, state in zip(
            student.non_trainable_variables, kept, strict=True
        ):
            variable.assign(state)
        return run(match, student, teacher, x, labels, training=False)

    for name, make in _FORMS.items():
        match = make()
        with tf.GradientTape() as tape:
            total = value(match, 0.0)
        gradients = tape.gradient(total, variables)
        slope = sum(
            np.sum(gradient.numpy() * along)
            for gradient, along in zip(gradients, direction, strict=True)
            if gradient is not None
        )
        step = 3e-6
        ahead, behind = value(match, step), value(match, -step)
        expected = float(ahead - behind) / (2 * step)
        rounding = 16 * np.finfo(float).eps * abs(float(total)) / step
        assert rounding < 1e-4 * abs(expected), name
        np.testing.assert_allclose(
            slope, expected, rtol=1e-7, atol=rounding, err_msg=name
        )


# === Ways to run ===


def _kinds(names):
    """Groups of forms that can share one training pass."""
    frozen = [name for name in names if name.startswith("frozen")]
    batch = [name for name in names if name.startswith("batch")]
    rest = [name for name in names if name not in frozen + batch]
    return [rest + frozen, batch]


def _make(names):
    matches = []
    for name in names:
        match = _FORMS[name]()
        config = {**match.get_config(), "name": name.replace(" ", "_")}
        matches.append(type(match).from_config(config))
    return matches


def _stepped(make_network, images, names, pool="average", **kwargs):
    """Values of all matches in one step, and the weights that it leaves."""
    student = make_network(2, seed=1, name="student", pool=pool)
    teacher = make_network(3, seed=2, name="teacher", pool=pool)
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=_make(names)
    )
    distiller.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **kwargs,
    )
    logs = distiller.train_on_batch(
        images[0][:4], images[1][:4], return_dict=True
    )
    return logs, [variable.numpy() for variable in student.variables]


@pytest.mark.parametrize("names", _kinds(_FORMS), ids=["own", "batch"])
def test_eager_graph_and_xla_agree(float64, make_network, images, names):
    """In float64, so that each form's part of the weights' step is seen."""
    logs, weights = _stepped(make_network, images, names, jit_compile=False)
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        others, other_weights = _stepped(make_network, images, names, **options)
        assert others.keys() == logs.keys()
        for key in logs:
            np.testing.assert_allclose(
                others[key], logs[key], rtol=1e-9, err_msg=key
            )
        for one, other in zip(weights, other_weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
