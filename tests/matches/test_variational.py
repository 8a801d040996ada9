"""VariationalMatch: its values, what it trains, what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import central_difference, variational
from signals import between, bind, identity

import tfkd
from tfkd.trace import Trace


def _signals(shape, ours, theirs):
    """Student's and teacher's signal, `[4, *shape, channels]`."""
    rng = np.random.default_rng(0)
    floatx = keras.config.floatx()
    return (
        rng.normal(size=(4, *shape, ours)).astype(floatx),
        2.0 * rng.normal(size=(4, *shape, theirs)).astype(floatx),
    )


def _shuffle(match):
    """Gives each channel a variance of its own; returns all weights."""
    rng = np.random.default_rng(1)
    for weight in match.weights:
        if "rho" in weight.name:
            weight.assign(rng.normal(size=weight.shape))
    (regressor,) = match.regressors
    (variance,) = match.variances
    return [layer.kernel.numpy() for layer in regressor.layers], variance


@pytest.mark.parametrize("shape", [(), (3,), (4, 2), (2, 2, 3)])
def test_is_its_formula(shape):
    student, teacher = _signals(shape, 3, 5)
    match = tfkd.VariationalMatch("features")
    value = between(match, student.shape[1:], teacher.shape[1:])
    kernels, variances = _shuffle(match)
    assert [kernel.shape for kernel in kernels] == [(3, 5), (5, 5), (5, 5)]
    expected = variational(teacher, student, kernels, variances)
    np.testing.assert_allclose(value(student, teacher), expected, rtol=1e-5)


def test_starts_at_a_variance_of_five():
    """A student of zeros predicts 0: 1/2 (3^2 / 5 + log 5)."""
    match = tfkd.VariationalMatch("features")
    value = between(match, (2,), (4,))
    np.testing.assert_allclose(match.variances, [[5.0] * 4], rtol=1e-6)
    actual = value(np.zeros([6, 2], "float32"), np.full([6, 4], 3.0, "float32"))
    np.testing.assert_allclose(actual, 0.9 + 0.5 * np.log(5.0), rtol=1e-6)


@pytest.mark.parametrize("student_is_larger", [True, False])
def test_the_larger_map_is_pooled_first(student_is_larger):
    """Averages of 2x3 windows are predicted, or predict."""
    rng = np.random.default_rng(0)
    large = rng.normal(size=(3, 4, 6, 3)).astype("float32")
    small = rng.normal(size=(3, 2, 2, 3)).astype("float32")
    pooled = large.reshape(3, 2, 2, 2, 3, 3).mean(axis=(2, 4))
    match = tfkd.VariationalMatch("features")
    if student_is_larger:
        actual = between(match, (4, 6, 3), (2, 2, 3))(large, small)
        pair = small, pooled
    else:
        actual = between(match, (2, 2, 3), (4, 6, 3))(small, large)
        pair = pooled, small
    expected = variational(*pair, *_weights_of(match))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def _weights_of(match):
    kernels = [layer.kernel.numpy() for layer in match.regressors[0].layers]
    return kernels, match.variances[0].numpy()


def test_the_best_variance_is_the_mean_squared_error():
    """With residuals r, 1/2 (r^2 / v + log v) is least at v = <r^2>."""
    teacher = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    student = np.zeros([64, 2], "float32")
    match = tfkd.VariationalMatch("features")
    value = between(match, (2,), (3,))
    (rho,) = (w for w in match.trainable_weights if "rho" in w.name)
    best = np.mean(teacher.astype("float64") ** 2, axis=0)
    for factor, sign in ((0.8, -1.0), (1.0, 0.0), (1.25, 1.0)):
        rho.assign(np.log(np.expm1(factor * best - 1e-5)))
        with tf.GradientTape() as tape:
            loss = value(student, teacher)
        slope = tape.gradient(loss, rho).numpy()
        np.testing.assert_array_equal(
            np.sign(np.where(np.abs(slope) < 1e-6, 0.0, slope)), [sign] * 3
        )


def test_gradients(float64):
    student, teacher = _signals((2, 2), 3, 4)
    match = tfkd.VariationalMatch("features")
    value = between(match, (2, 2, 3), (2, 2, 4))
    _shuffle(match)
    student = tf.Variable(student)
    with tf.GradientTape() as tape:
        loss = value(student, teacher)
    assert loss.dtype == "float64"
    variables = [student, *(w.value for w in match.trainable_weights)]
    assert len(variables) == 5
    for variable, gradient in zip(
        variables, tape.gradient(loss, variables), strict=True
    ):
        start = variable.numpy()

        def moved(x, variable=variable):
            variable.assign(x)
            return float(value(student, teacher))

        expected = central_difference(moved, start)
        variable.assign(start)
        assert np.linalg.norm(expected) > 1e-3
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_weights_weigh_examples():
    student, teacher = _signals((2, 2), 3, 4)
    value = between(tfkd.VariationalMatch("features"), (2, 2, 3), (2, 2, 4))
    weights = [3.0, 0.0, 1.0, 0.5]
    weighed = value(student, teacher, sample_weight=tf.constant(weights))
    each = [value(student[i : i + 1], teacher[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(weighed, np.dot(weights, each) / 4, rtol=1e-5)


def test_padding_does_not_count():
    """Tokens 1, 2 and padding 0, whose teacher is far away.

    With kernels of one, 1 predicts 3 and 2 predicts 4.
    """

    def network(rows, name):
        inputs = keras.Input((3,), dtype="int32")
        table = keras.layers.Embedding(
            3,
            1,
            mask_zero=True,
            weights=[np.array(rows, "float32")[:, None]],
            name="features",
        )
        return keras.Model(inputs, table(inputs), name=name)

    student = network([5, 1, 2], "student")
    teacher = network([99, 3, 4], "teacher")
    match = bind(tfkd.VariationalMatch("features"), student, teacher)
    x = tf.constant([[1, 2, 0], [2, 1, 0]])
    observed = match.observe(Trace(teacher, x, layers=["features"]))
    trace = Trace(student, x, layers=["features"])
    for layer in match.regressors[0].layers:
        layer.kernel.assign([[1.0]])
    expected = 0.5 * (2.0**2 / 5.0 + np.log(5.0))
    actual = match.value(trace, observed)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def _fitted(make_network, images, **options):
    keras.utils.set_random_seed(0)
    match = tfkd.VariationalMatch(["stage1", "stage2"], weight=0.5)
    distiller = tfkd.Distiller(
        student=make_network(seed=1, name="student"),
        teacher=make_network(6, seed=2, name="teacher"),
        matches=[match],
    )
    distiller.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    distiller.fit(*images, batch_size=4, epochs=2, verbose=0)
    return distiller, match


def test_the_variances_are_trained_by_the_step(make_network, images):
    """Of rho: rate x weight x sigmoid(rho) (1/v - <r^2> / v^2) / 2 / C.

    Residuals r of the student before the step, over examples and positions.
    """
    student = make_network(seed=1, name="student", normalization=None)
    teacher = make_network(6, seed=2, name="teacher")
    match = tfkd.VariationalMatch("stage2", weight=0.5)
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=[match]
    )
    distiller.compile(
        keras.optimizers.SGD(100.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ours, theirs = (
        Trace(network, images[0], layers=["stage2"])["stage2"].numpy()
        for network in (student, teacher)
    )
    residuals = np.float64(match.regressors[0](ours) - theirs)
    distiller.train_on_batch(*images)
    error = np.mean(residuals**2, axis=(0, 1, 2))
    rho = np.log(np.expm1(5.0 - 1e-5))
    slope = (1 / 5.0 - error / 5.0**2) / 2 / 12 / (1 + np.exp(-rho))
    expected = np.logaddexp(0.0, rho - 100.0 * 0.5 * slope) + 1e-5
    assert np.all(np.abs(expected - 5.0) > 0.1)
    np.testing.assert_allclose(match.variances[0], expected, rtol=1e-5)


def test_fit_trains_every_variance(make_network, images):
    _, match = _fitted(make_network, images)
    assert [variance.shape[0] for variance in match.variances] == [6, 12]
    for variance in match.variances:
        assert np.all(np.abs(variance.numpy() - 5.0) > 1e-5)


def test_every_way_to_run_gives_the_same_weights(make_network, images):
    ways = {"jit_compile": False}, {"run_eagerly": True}, {"jit_compile": True}
    graph, *others = (
        _fitted(make_network, images, **way)[0].weights for way in ways
    )
    for other in others:
        for one, two in zip(graph, other, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-5)


def test_training_continues_from_a_file(make_network, images, tmp_path):
    distiller, match = _fitted(make_network, images)
    distiller.save(tmp_path / "distiller.keras")
    teacher = make_network(6, seed=2, name="teacher")
    again = tfkd.Distiller.load(tmp_path / "distiller.keras", teacher=teacher)
    (loaded,) = again.matches
    for one, two in zip(match.variances, loaded.variances, strict=True):
        np.testing.assert_array_equal(one, two)
    losses = [d.train_on_batch(*images) for d in (distiller, again)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_bad_arguments_are_refused():
    for variance in (0.0, -1.0, 1e-6, float("nan"), "5"):
        with pytest.raises(ValueError, match="argument `variance`"):
            tfkd.VariationalMatch("features", variance=variance)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((4, 4, 3), (16,)), ((3, 5), (4, 5)), ((4, 4, 3), (None, None, 3))],
)
def test_signals_without_common_positions_are_refused(ours, theirs):
    match = tfkd.VariationalMatch("features")
    with pytest.raises(ValueError, match="layer 'features'.*Choose other"):
        bind(match, identity(ours), identity(theirs))


def test_configuration_round_trip():
    match = tfkd.VariationalMatch(
        ["a", ("b", "c")], variance=2.0, weight=0.5, name="vid"
    )
    again = type(match).from_config(match.get_config())
    assert again.get_config() == match.get_config()
    assert again.pairs == [("a", "a"), ("b", "c")]
