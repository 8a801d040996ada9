"""FactorMatch and its paraphraser: values, stages, what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import (
    batch_normalized,
    central_difference,
    convolution,
    factor_distance,
    leaky,
)
from signals import between, bind, identity

import tfkd
from tfkd.matches import Paraphraser
from tfkd.trace import Trace


def _maps(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(keras.config.floatx())


def _encoded(network, maps, normalized=False):
    """The network's three convolutions in float64."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            maps = convolution(
                maps, *(np.float64(w) for w in layer.get_weights())
            )
            if normalized:
                maps = batch_normalized(maps)
            maps = leaky(maps)
    return maps


def _randomize(layer):
    """Gives biases, which start at zero, some value."""
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if weight.path.endswith("bias"):
            weight.assign(0.1 * rng.normal(size=weight.shape))


def _paraphraser(trained=True, **options):
    """A paraphraser that says that it was trained, or not."""
    paraphraser = Paraphraser(**options)
    paraphraser.build((None, 3, 3, 6))
    _randomize(paraphraser)
    paraphraser.steps.assign(int(trained))
    return paraphraser


def test_the_paraphraser_narrows_to_half_and_back():
    paraphraser = _paraphraser()
    widths = [
        [layer.kernel.shape for layer in side.layers[::2]]
        for side in (paraphraser.encoder, paraphraser.decoder)
    ]
    assert widths == [
        [(3, 3, 6, 6), (3, 3, 6, 3), (3, 3, 3, 3)],
        [(3, 3, 3, 3), (3, 3, 3, 6), (3, 3, 6, 6)],
    ]


def test_paraphrasing_is_the_error_of_reconstruction():
    maps = _maps((4, 3, 3, 6))
    paraphraser = _paraphraser()
    match = tfkd.ParaphraserMatch("features", paraphraser=paraphraser)
    value = between(match, (2, 2, 5), (3, 3, 6))
    code = _encoded(paraphraser.encoder, maps)
    restored = _encoded(paraphraser.decoder, code)
    each = np.mean((restored - maps) ** 2, axis=(1, 2, 3))
    student = _maps((4, 2, 2, 5))
    np.testing.assert_allclose(value(student, maps), each.mean(), rtol=1e-5)
    weights = np.array([3.0, 0.0, 1.0, 0.5])
    weighed = value(student, maps, sample_weight=tf.constant(weights))
    np.testing.assert_allclose(weighed, np.mean(weights * each), rtol=1e-5)


@pytest.mark.parametrize("size", [(3, 3), (6, 9)])
def test_is_its_formula(size):
    """Codes of a larger student are averaged over windows."""
    teacher, student = _maps((4, 3, 3, 6)), _maps((4, *size, 5), seed=1)
    paraphraser = _paraphraser()
    match = tfkd.FactorMatch("features", paraphraser=paraphraser)
    value = between(match, student.shape[1:], teacher.shape[1:])
    ours = _encoded(match.translator, student, normalized=True)
    ours = ours.reshape(4, 3, size[0] // 3, 3, size[1] // 3, 3).mean(
        axis=(2, 4)
    )
    each = factor_distance(_encoded(paraphraser.encoder, teacher), ours)
    actual = value(student, teacher, training=True)
    np.testing.assert_allclose(actual, each.mean(), rtol=1e-5)
    weights = np.array([3.0, 0.0, 1.0, 0.5])
    weighed = value(
        student, teacher, training=True, sample_weight=tf.constant(weights)
    )
    np.testing.assert_allclose(weighed, np.mean(weights * each), rtol=1e-5)


def test_the_larger_code_of_the_teacher_is_averaged():
    teacher, student = _maps((4, 6, 6, 6)), _maps((4, 2, 3, 5), seed=1)
    paraphraser = _paraphraser()
    match = tfkd.FactorMatch("features", paraphraser=paraphraser)
    value = between(match, student.shape[1:], teacher.shape[1:])
    theirs = _encoded(paraphraser.encoder, teacher)
    theirs = theirs.reshape(4, 2, 3, 3, 2, 3).mean(axis=(2, 4))
    ours = _encoded(match.translator, student, normalized=True)
    expected = factor_distance(theirs, ours).mean()
    actual = value(student, teacher, training=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def _check_gradients(value, signals, variables):
    """Compares gradients of `value(*signals)` with central differences."""
    with tf.GradientTape() as tape:
        loss = value(*signals, training=True)
    assert loss.dtype == "float64"
    for variable, gradient in zip(
        variables, tape.gradient(loss, variables), strict=True
    ):
        start = variable.numpy()

        def moved(x, variable=variable):
            variable.assign(x)
            return float(value(*signals, training=True))

        expected = central_difference(moved, start)
        variable.assign(start)
        assert np.linalg.norm(expected) > 1e-4
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_gradients_of_paraphrasing(float64):
    paraphraser = Paraphraser()
    match = tfkd.ParaphraserMatch("features", paraphraser=paraphraser)
    value = between(match, (2, 2, 1), (2, 2, 2))
    _randomize(paraphraser)
    variables = [v.value for v in match.trainable_variables]
    assert len(variables) == 12
    signals = _maps((2, 2, 2, 1)), _maps((2, 2, 2, 2))
    _check_gradients(value, signals, variables)


def test_gradients_of_factors(float64):
    """Of the student's map and of the translator; the rest is constant."""
    match = tfkd.FactorMatch("features")
    value = between(match, (2, 2, 2), (2, 2, 4))
    match.paraphraser.steps.assign(1)
    _randomize(match.paraphraser)
    assert all("translator" in v.path for v in match.trainable_variables)
    student = tf.Variable(_maps((3, 2, 2, 2), seed=1))
    chosen = [v.value for v in match.trainable_variables if len(v.shape) == 1]
    assert len(chosen) == 6  # scales and offsets
    _check_gradients(value, (student, _maps((3, 2, 2, 4))), [student, *chosen])


# === The stages ===


def _stage(make_network, images, matches, **options):
    """Fits a new Distiller for the matches; the label loss is there."""
    label_weight = options.pop("label_weight", 1.0)
    student = options.pop("student", None) or make_network(
        seed=1, name="student", regularizer="l2"
    )
    distiller = tfkd.Distiller(
        student=student,
        teacher=make_network(6, seed=2, name="teacher"),
        matches=matches,
        label_weight=label_weight,
    )
    distiller.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    distiller.fit(*images, batch_size=4, epochs=1, verbose=0)
    return distiller


def _values(layer):
    return [v.numpy() for v in layer.variables]


def _trained(make_network, images, **options):
    """A FactorMatch whose paraphraser has had its stage."""
    keras.utils.set_random_seed(0)
    factor = tfkd.FactorMatch("stage2", weight=2.0)
    stage = tfkd.ParaphraserMatch("stage2", paraphraser=factor.paraphraser)
    distiller = _stage(
        make_network, images, [stage], label_weight=0.0, **options
    )
    return factor, distiller


def test_the_paraphrasers_stage_leaves_the_student_alone(make_network, images):
    student = make_network(seed=1, name="student", regularizer="l2")
    before = _values(student)
    factor, distiller = _trained(make_network, images, student=student)
    for variable, value in zip(student.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert int(factor.paraphraser.steps) == 2
    assert len(factor.paraphraser.trainable_variables) == 12
    assert distiller.matches[0].paraphraser is factor.paraphraser


def test_the_paraphrasers_stage_is_descent_of_its_error(make_network, images):
    """A step of SGD is one along the gradient, by hand."""
    factor = tfkd.FactorMatch("stage2")
    match = tfkd.ParaphraserMatch("stage2", paraphraser=factor.paraphraser)
    teacher = make_network(6, seed=2, name="teacher")
    distiller = tfkd.Distiller(
        student=make_network(seed=1, name="student"),
        teacher=teacher,
        matches=[match],
        label_weight=0.0,
    )
    distiller.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    paraphraser = factor.paraphraser
    maps = Trace(teacher, images[0], layers=["stage2"])["stage2"]
    variables = paraphraser.trainable_variables
    with tf.GradientTape() as tape:
        error = tf.reduce_mean((paraphraser(maps) - maps) ** 2)
    gradients = tape.gradient(error, [v.value for v in variables])
    expected = [
        v.numpy() - 0.1 * g.numpy()
        for v, g in zip(variables, gradients, strict=True)
    ]
    distiller.train_on_batch(*images)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=1e-6)
    distiller.optimizer.learning_rate = 0.02
    distiller.fit(*images, epochs=30, verbose=0)
    after = tf.reduce_mean((paraphraser(maps) - maps) ** 2)
    assert float(after) < 0.9 * float(error)


def test_the_paraphraser_is_frozen_after_its_stage(make_network, images):
    factor, _ = _trained(make_network, images)
    before = _values(factor.paraphraser)
    distiller = _stage(make_network, images, [factor])
    for variable, value in zip(
        factor.paraphraser.variables, before, strict=True
    ):
        np.testing.assert_array_equal(variable, value)
    trained = {v.path for v in distiller.trainable_variables}
    assert not any("coder" in path for path in trained)
    assert sum("translator" in path for path in trained) == 9


def test_every_way_to_run_gives_the_same_weights(make_network, images):
    weights = []
    for way in (
        {"jit_compile": False},
        {"run_eagerly": True},
        {"jit_compile": True},
    ):
        factor, _ = _trained(make_network, images, **way)
        keras.utils.set_random_seed(1)
        weights.append(_values(_stage(make_network, images, [factor], **way)))
    for others in weights[1:]:
        for one, two in zip(weights[0], others, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)


def test_training_continues_from_a_file(make_network, images, tmp_path):
    """With the paraphraser that was trained, still frozen."""
    factor, _ = _trained(make_network, images, run_eagerly=True)
    distiller = _stage(make_network, images, [factor], run_eagerly=True)
    distiller.save(tmp_path / "distiller.keras")
    again = tfkd.Distiller.load(
        tmp_path / "distiller.keras",
        teacher=make_network(6, seed=2, name="teacher"),
    )
    before = _values(again.matches[0].paraphraser)
    for one, two in zip(_values(factor.paraphraser), before, strict=True):
        np.testing.assert_array_equal(one, two)
    losses = [d.train_on_batch(*images) for d in (distiller, again)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for one, two in zip(_values(distiller), _values(again), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
    for one, two in zip(
        before, _values(again.matches[0].paraphraser), strict=True
    ):
        np.testing.assert_array_equal(one, two)


# === Errors ===


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_an_untrained_paraphraser_is_named(make_network, images, options):
    """Before the first step: under XLA a step would assert nothing."""
    with pytest.raises(
        ValueError, match="'factor_match' has not been trained.*First fit"
    ):
        _stage(make_network, images, [tfkd.FactorMatch("stage2")], **options)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="argument `ratio`"):
        Paraphraser(ratio=0.0)
    for make in (tfkd.FactorMatch, tfkd.ParaphraserMatch):
        with pytest.raises(ValueError, match="argument `paraphraser`"):
            make("a", paraphraser=keras.layers.ReLU())
        with pytest.raises(ValueError, match="argument `at`.*for each"):
            make(["a", "b"], paraphraser=Paraphraser())


def test_what_is_no_map_is_refused():
    for ours, theirs in (((5,), (3, 3, 6)), ((3, 3, 6), (None, None, 6))):
        with pytest.raises(ValueError, match="Choose a layer before the pool"):
            bind(tfkd.FactorMatch("features"), identity(ours), identity(theirs))


def test_a_single_position_is_refused():
    """Its normalised attention is 1, whatever the networks do."""
    for ours, theirs in (((4, 4, 6), (1, 1, 6)), ((4, 1, 6), (1, 4, 6))):
        with pytest.raises(ValueError, match="Choose an earlier layer"):
            bind(tfkd.FactorMatch("features"), identity(ours), identity(theirs))


def test_a_paraphraser_of_another_teacher_is_refused():
    match = tfkd.FactorMatch("features", paraphraser=_paraphraser())
    with pytest.raises(ValueError, match="of 6 channels.*gives 4. Make ano"):
        bind(match, identity((3, 3, 6)), identity((3, 3, 4)))


def test_configuration_round_trip():
    for make in (tfkd.FactorMatch, tfkd.ParaphraserMatch):
        match = make(
            ("a", "b"),
            paraphraser=Paraphraser(ratio=0.25, name="p"),
            weight=3.0,
            name="ft",
        )
        again = type(match).from_config(match.get_config())
        assert again.get_config() == match.get_config()
        assert again.paraphraser.ratio == 0.25
