"""`DecoupledTargets` against its formula, and how it refuses bad input."""

import keras
import numpy as np
import pytest
import reference_baselines
import tensorflow as tf
from gradients import assert_central, gradients, normal

from tfkd.losses import DecoupledTargets, SoftTargets

SHAPES = [(5, 4), (16, 10), (3, 2), (1, 100)]


def _labels(shape, seed=1):
    return np.random.default_rng(seed).integers(0, shape[1], size=shape[0])


def _call(loss, labels):
    """The loss as a function of two arrays of logits."""

    def call(teacher, student):
        return loss.call(
            {"outputs": teacher, "labels": labels},
            {"outputs": student, "labels": labels},
        )

    return call


def test_value_by_hand():
    """Even odds of three against (1, e, 1) / (2 + e), class 0 true.

    Target: p = 1/3 and 2/3, q = 1 / (2 + e) and (1 + e) / (2 + e). Others:
    1/2 each against e / (1 + e) and 1 / (1 + e).
    """
    e = np.e
    target = np.log((2 + e) / 3) / 3 + 2 / 3 * np.log(2 / 3 * (2 + e) / (1 + e))
    others = np.log((1 + e) ** 2 / (4 * e)) / 2
    call = _call(DecoupledTargets(temperature=1.0), [0])
    value = call([[0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(value, [target + 8 * others], rtol=1e-6)


@pytest.mark.parametrize(
    "settings", [(4.0, 1.0, 8.0), (1.0, 2.0, 0.5), (20.0, 1.0, 1.0)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(shape, settings):
    """With logits of the temperature's size, so that networks do differ.

    In float32 a log-probability has an error of 1e-7, which is 1e-5 of a
    difference of 1e-2.
    """
    temperature, *weights = settings
    teacher, student = (2 * temperature * z for z in normal(shape, shape))
    loss = DecoupledTargets(
        temperature, target_weight=weights[0], others_weight=weights[1]
    )
    labels = _labels(shape)
    for dtype, rtol in (("float64", 1e-9), ("float32", 1e-5)):
        pair = teacher.astype(dtype), student.astype(dtype)
        actual = _call(loss, labels)(*pair)
        assert actual.shape == shape[:1]
        np.testing.assert_allclose(
            actual,
            reference_baselines.decoupled_targets(
                *pair, labels, temperature, weights
            ),
            rtol=rtol,
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_central_differences(shape):
    call = _call(DecoupledTargets(), _labels(shape))
    assert_central(call, *normal(shape, shape), rtol=1e-5)


def test_soft_targets_are_the_sum_with_the_teachers_doubt():
    """KL(p || q) = KL(b) + (1 - p of the true class) KL(r)."""
    teacher, student = normal((1, 6), (1, 6))
    doubt = 1 - reference_baselines.softmax(teacher[0] / 3)[2]
    loss = DecoupledTargets(3.0, others_weight=doubt)
    np.testing.assert_allclose(
        _call(loss, [2])(teacher, student),
        SoftTargets(3.0).call(teacher, student),
        rtol=1e-10,
    )


def test_confident_teacher_still_tells_of_the_others():
    """At T = 1, p = 1 - 1e-13: the target has no gradient, the others do."""
    teacher = np.float32([[40.0, 5.0, 0.0]])
    student = np.float32([[40.0, 0.0, 5.0]])
    soft = SoftTargets(1.0).call(teacher, student)
    decoupled = _call(DecoupledTargets(1.0), [0])(teacher, student)
    assert soft < 1e-6
    # Difference of log-odds, 10, times tanh(5 / 2), times 8.
    np.testing.assert_allclose(decoupled, 80 * np.tanh(2.5) / 2, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e4, 0.0])
def test_extreme_logits_stay_finite(scale):
    teacher, student = normal((6, 5), (6, 5), dtype="float32")
    call = _call(DecoupledTargets(), _labels((6, 5)))
    arguments = np.float32(scale) * teacher, np.float32(scale) * student
    for tensor in (call(*arguments), *gradients(call, *arguments)):
        assert np.all(np.isfinite(tensor))


@pytest.mark.parametrize("form", ["column", "one-hot", "float"])
def test_labels_come_in_any_form(form):
    teacher, student = normal((4, 3), (4, 3))
    labels = np.array([2, 0, 1, 1])
    other = {
        "column": labels[:, None],
        "one-hot": np.eye(3)[labels],
        "float": labels.astype("float32"),
    }[form]
    loss = DecoupledTargets()
    np.testing.assert_array_equal(
        _call(loss, other)(teacher, student),
        _call(loss, labels)(teacher, student),
    )


def test_many_classes_keep_their_numbers_in_low_precision():
    """Keras would make 2049 in float16 2048."""
    loss = DecoupledTargets(dtype="float16")
    teacher, student = normal((1, 2050), (1, 2050))
    labels = [2049]
    value = loss(
        {"outputs": teacher, "labels": labels},
        {"outputs": student, "labels": labels},
    )
    assert value.dtype == tf.float16
    np.testing.assert_allclose(
        value, _call(loss, labels)(teacher, student)[0], rtol=1e-3
    )


def test_serves_in_a_graph_of_unknown_batch():
    signature = [
        tf.TensorSpec([None, 3], tf.float32),
        tf.TensorSpec([None, 3], tf.float32),
        tf.TensorSpec([None, 1], tf.int32),
    ]
    loss = DecoupledTargets()
    compiled = tf.function(
        lambda t, s, labels: _call(loss, labels)(t, s),
        input_signature=signature,
    )
    teacher, student = normal((4, 3), (4, 3), dtype="float32")
    labels = np.int32([[2], [0], [1], [1]])
    np.testing.assert_allclose(
        compiled(teacher, student, labels),
        _call(loss, labels)(teacher, student),
        rtol=1e-6,
    )


def test_says_what_it_needs():
    assert DecoupledTargets.signals == ("outputs", "labels")
    loss = DecoupledTargets()
    for evaluate in (loss, loss.call):
        with pytest.raises(ValueError, match="dicts with the keys.*Match"):
            evaluate(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"Received: \['outputs'\]"):
        loss({"outputs": np.ones((2, 3))}, {"outputs": np.ones((2, 3))})


@pytest.mark.parametrize("shape", [(2, 1), (2, 3, 4)])
def test_logits_of_another_kind_are_refused(shape):
    with pytest.raises(ValueError, match="two classes or more"):
        _call(DecoupledTargets(), [0, 0])(np.ones(shape), np.ones(shape))


@pytest.mark.parametrize(
    "argument", ["temperature", "target_weight", "others_weight"]
)
def test_settings_out_of_range_are_refused(argument):
    with pytest.raises(ValueError, match=f"argument `{argument}`. Expected"):
        DecoupledTargets(**{argument: -1.0})


def test_configuration_keeps_the_settings():
    loss = DecoupledTargets(2.0, target_weight=3.0, others_weight=5.0)
    config = keras.saving.serialize_keras_object(loss)
    same = keras.saving.deserialize_keras_object(config)
    assert (same.temperature, same.target_weight) == (2.0, 3.0)
    assert same.others_weight == 5.0
