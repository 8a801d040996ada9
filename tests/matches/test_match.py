"""Where and how two networks are compared: values, weights, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.matches.base import reduce_values, weighted
from tfkd.trace import Trace, outline


def _identity(shape, name="net"):
    """A network that returns its input; `features` has its shape."""
    inputs = keras.Input(shape)
    outputs = keras.layers.Activation("linear", name="features")(inputs)
    return keras.Model(inputs, outputs, name=name)


def _dense(width, name="net"):
    inputs = keras.Input((4,))
    features = keras.layers.Dense(width, name="features")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="out")(features))


def _bind(match, student, teacher):
    match.bind(
        student=outline(student, match.student_layers),
        teacher=outline(teacher, match.teacher_layers),
    )
    return match


def _value(match, student_signal, teacher_signal, **kwargs):
    """The match between two networks that return these signals."""
    student_signal = tf.constant(student_signal)
    teacher_signal = tf.constant(teacher_signal)
    student = _identity(student_signal.shape[1:], "student")
    teacher = _identity(teacher_signal.shape[1:], "teacher")
    _bind(match, student, teacher)
    observed = match.observe(
        Trace(teacher, teacher_signal, layers=match.teacher_layers)
    )
    trace = Trace(student, student_signal, layers=match.student_layers)
    return float(match.value(trace, observed, **kwargs))


def test_outputs_under_a_loss():
    """(1 + 9) / 2 over the batch of |1 - 0|^2 and |0 - 3|^2."""
    match = tfkd.Match(tfkd.losses.SquaredError())
    assert _value(match, [[1.0], [0.0]], [[0.0], [3.0]]) == 5.0


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()])
def test_stock_losses_serve(loss):
    """((1 + 1) / 2 + (4 + 0) / 2) / 2."""
    match = tfkd.Match(loss, at="features")
    value = _value(match, [[1.0, 1.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 5.0]])
    assert value == 1.5


def test_a_function_serves_as_a_loss():
    def absolute(y_true, y_pred):
        return tf.reduce_sum(tf.abs(y_true - y_pred), axis=-1)

    match = tfkd.Match(absolute)
    assert match.name == "absolute"
    assert _value(match, [[1.0, -1.0]], [[0.0, 2.0]]) == 4.0


def test_weights_of_examples_meet_the_examples_of_a_map():
    """Batch 2, height 2, width 2: Keras alone would weigh the columns.

    Example 0 errs by 1 everywhere, example 1 by 2: with weights 3 and 0 the
    mean over all positions is (4 * 1 * 3 + 4 * 4 * 0) / 8.
    """
    student = np.ones([2, 2, 2, 1], "float32")
    student[1] = 2.0
    match = tfkd.Match("mse", at="features")
    weights = tf.constant([3.0, 0.0])
    teacher = np.zeros_like(student)
    assert _value(match, student, teacher, sample_weight=weights) == 1.5
    column = tf.constant([[3.0], [0.0]])
    assert _value(match, student, teacher, sample_weight=column) == 1.5


def test_weights_of_positions_are_used_where_the_loss_has_them():
    """Errors 1 and 4 at two positions with weights 2 and 1: (2 + 4) / 2."""
    match = tfkd.Match("mse")
    student = [[[1.0], [2.0]]]
    weights = tf.constant([[2.0, 1.0]])
    value = _value(match, student, [[[0.0], [0.0]]], sample_weight=weights)
    assert value == 3.0


def test_weights_of_positions_become_the_examples_mean_elsewhere():
    """One value an example, 1 + 4, times the mean of weights 2 and 1."""
    match = tfkd.Match(tfkd.losses.SquaredError())
    student = [[[1.0], [2.0]]]
    weights = tf.constant([[2.0, 1.0]])
    value = _value(match, student, [[[0.0], [0.0]]], sample_weight=weights)
    assert value == 7.5


def test_weights_are_masses_to_a_loss_between_distributions():
    """Without its last example, at half the mean weight: the same cost."""
    rng = np.random.default_rng(0)
    student = rng.normal(size=(5, 6)).astype("float32")
    teacher = rng.normal(size=(5, 6)).astype("float32")
    match = tfkd.Match(tfkd.losses.RelaxedEarthMover())
    weights = tf.constant([1.0, 1.0, 1.0, 1.0, 0.0])
    weighed = _value(match, student, teacher, sample_weight=weights)
    without = _value(
        tfkd.Match(tfkd.losses.RelaxedEarthMover()), student[:4], teacher[:4]
    )
    np.testing.assert_allclose(weighed, 0.8 * without, rtol=1e-6)


def test_several_places_are_summed():
    match = tfkd.Match(tfkd.losses.SquaredError(), at=["features", None])
    assert _value(match, [[1.0]], [[3.0]]) == 4.0 + 4.0
    assert match.where == "features, outputs"


def test_padding_counts_neither_in_values_per_position_nor_per_example():
    """Tokens 1, 2 and padding 0; the student errs by its table's entries.

    Table rows 0, 1, 2 hold 9, 1, 2 against a teacher of zeros: per position
    the mean over the two valid ones is (1 + 4) / 2, per example the sum is
    1 + 4.
    """

    def network(rows):
        inputs = keras.Input((3,), dtype="int32")
        table = keras.layers.Embedding(
            3, 1, mask_zero=True, weights=[np.array(rows, "float32")[:, None]]
        )
        return keras.Model(inputs, table(inputs))

    student, teacher = network([9, 1, 2]), network([0, 0, 0])
    x = tf.constant([[1, 2, 0]])
    for loss, expected in (("mse", 2.5), (tfkd.losses.SquaredError(), 5.0)):
        match = _bind(tfkd.Match(loss), student, teacher)
        observed = match.observe(Trace(teacher, x))
        assert float(match.value(Trace(student, x), observed)) == expected


def test_a_projector_maps_the_student_to_the_teacher():
    """Student 1, kernel of ones to two entries, teacher (1, 3): (0 + 4)/2."""
    projector = keras.layers.Dense(2, kernel_initializer="ones")
    match = tfkd.Match("mse", projector=projector)
    assert _value(match, [[1.0]], [[1.0, 3.0]]) == 2.0


def test_a_teacher_projector_receives_a_gradient():
    student, teacher = _dense(4), _dense(6)
    match = tfkd.Match(
        "mse", at="features", projector=None, teacher_projector="dense"
    )
    _bind(match, student, teacher)
    x = tf.ones([5, 4])
    observed = match.observe(Trace(teacher, x, layers=["features"]))
    with tf.GradientTape() as tape:
        value = match.value(Trace(student, x, layers=["features"]), observed)
    gradients = tape.gradient(value, match.trainable_variables)
    assert len(gradients) == 2
    assert all(float(tf.norm(g)) > 0 for g in gradients)


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [
        ("dense", (5,), (7,)),
        ("dense", (4, 4, 5), (4, 4, 7)),
        ("conv", (5,), (7,)),
        ("conv", (8, 5), (4, 7)),
        ("conv", (8, 8, 5), (8, 8, 7)),
        ("conv", (8, 8, 5), (4, 4, 7)),
        ("conv", (4, 4, 5), (8, 8, 7)),
        ("conv", (7, 7, 5), (4, 4, 7)),
        ("conv", (4, 4, 4, 5), (2, 2, 2, 7)),
        ("conv", (None, None, 5), (None, None, 7)),
    ],
)
def test_named_projectors_are_built_to_fit(kind, source, target):
    student, teacher = _identity(source), _identity(target)
    for match, ours, theirs in (
        (tfkd.Match("mse", projector=kind), student, teacher),
        (tfkd.Match("mse", teacher_projector=kind), teacher, student),
    ):
        _bind(match, ours, theirs)
        assert len(match.trainable_variables) >= 1


def test_projectors_are_given_for_each_place():
    match = tfkd.Match("mse", at=["features", None], projector=["dense", None])
    _bind(match, _dense(4), _dense(6))
    kinds = [type(p).__name__ for p in match.student_projectors]
    assert kinds == ["Dense", "NoneType"]


def test_signals_are_compared_in_float32():
    """1e-4 squared vanishes in float16, whose smallest number is 6e-8."""

    def network(value):
        inputs = keras.Input((1,))
        layer = keras.layers.Rescaling(value, dtype="float16")
        return keras.Model(inputs, layer(inputs))

    match = _bind(tfkd.Match("mse"), network(1e-4), network(0.0))
    x = tf.ones([2, 1])
    observed = match.observe(Trace(network(0.0), x))
    value = match.value(Trace(network(1e-4), x), observed)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, 1e-8, rtol=1e-2)


def test_widths_that_differ_name_the_projector_to_use():
    match = tfkd.Match("mse", at="features")
    with pytest.raises(ValueError, match=r'projector="dense"'):
        _bind(match, _dense(4), _dense(6))
    maps = tfkd.Match("mse", at="features")
    with pytest.raises(ValueError, match=r'projector="conv"'):
        _bind(maps, _identity((8, 8, 2)), _identity((4, 4, 2)))


def test_one_column_is_not_broadcast_against_many():
    with pytest.raises(ValueError, match="has shape"):
        _bind(tfkd.Match("mse"), _identity((1,)), _identity((10,)))


def test_a_loss_that_accepts_other_widths_may_say_so():
    class Norms(keras.losses.Loss):
        same_shape = False

        def call(self, y_true, y_pred):
            return (tf.norm(y_true, axis=-1) - tf.norm(y_pred, axis=-1)) ** 2

    value = _value(tfkd.Match(Norms()), [[3.0, 4.0]], [[4.0, 0.0, 0.0]])
    assert value == 1.0


def test_probabilities_are_refused_where_logits_are_needed():
    softmax = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    match = tfkd.Match(tfkd.losses.SoftTargets())
    for student, teacher in (
        (softmax, _identity((3,))),
        (_identity((3,)), softmax),
    ):
        with pytest.raises(ValueError, match="needs logits.*softmax"):
            _bind(match, student, teacher)


def test_a_structure_of_outputs_is_refused():
    inputs = keras.Input((4,))
    heads = [keras.layers.Dense(2)(inputs), keras.layers.Dense(3)(inputs)]
    model = keras.Model(inputs, heads)
    with pytest.raises(ValueError, match="several tensors"):
        _bind(tfkd.Match("mse"), model, model)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), True])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match="`weight`"):
        tfkd.Match("mse", weight=weight)
    with pytest.raises(ValueError, match="`weight`"):
        tfkd.Match("mse", weight="0.5")


def test_a_weight_function_is_tried_at_step_0():
    tfkd.Match("mse", weight=lambda step: 1.0 / tf.cast(step + 1, "float32"))
    with pytest.raises(ValueError, match=r"-1\.0 at step 0"):
        tfkd.Match("mse", weight=lambda step: -1.0)


def test_a_weight_of_zero_keeps_infinity_out():
    assert weighted(0.0, tf.constant(np.inf), 0) is None
    assert float(weighted(2.0, tf.constant(3.0), 0)) == 6.0
    schedule = keras.optimizers.schedules.PolynomialDecay(4.0, 10, 0.0)
    assert float(weighted(schedule, tf.constant(3.0), 5)) == 6.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"at": 3},
        {"at": ("a", "b", "c")},
        {"at": []},
        {"projector": "deep"},
        {"at": ["a", "b"], "projector": ["dense"]},
        {"loss": 3},
        {"loss": keras.losses.MeanSquaredError(reduction="none")},
    ],
)
def test_bad_arguments_are_refused(arguments):
    arguments = {"loss": "mse", **arguments}
    with pytest.raises(ValueError, match="Invalid value|reduction"):
        _bind(tfkd.Match(**arguments), _identity((3,)), _identity((3,)))


def test_configuration_round_trip():
    match = tfkd.Match(
        tfkd.losses.SoftTargets(temperature=2.0),
        at=[("a", "b"), None],
        weight=keras.optimizers.schedules.PolynomialDecay(4.0, 10),
        projector=[keras.layers.Dense(7), None],
        teacher_projector="dense",
        name="mine",
    )
    config = keras.saving.serialize_keras_object(match)
    again = keras.saving.deserialize_keras_object(config)
    assert again.loss.temperature == 2.0
    assert [tuple(pair) for pair in again.pairs] == [("a", "b"), (None, None)]
    assert float(again.weight(0)) == 4.0
    assert again.student_projectors[0].units == 7
    assert list(again.teacher_projectors) == ["dense", "dense"]
    assert again.name == "mine"


def test_reductions_are_those_of_keras():
    values = tf.constant([[1.0, 2.0], [3.0, 6.0]])
    for reduction, expected in (
        ("sum_over_batch_size", (2 * 3 + 9) / 4),
        ("sum", 2 * 3 + 9),
        ("mean_with_sample_weight", (2 * 3 + 9) / 6),
    ):
        actual = reduce_values(
            values, reduction=reduction, sample_weight=tf.constant([2.0, 1.0])
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
