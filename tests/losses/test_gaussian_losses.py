"""`GaussianWasserstein` and `GaussianKL`, as a whole and by class."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from tfkd.losses import ClassConditional, GaussianKL, GaussianWasserstein

BOTH = (GaussianWasserstein, GaussianKL)
COVARIANCES = ("full", "diagonal")


def signals(batch=12, width=20, *, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, batch, width)).astype(dtype)


def expected(loss, teacher, student, ridge=None):
    """What a loss says of two batches, by dense matrices.

    Args:
        loss: Either.
        teacher: The teacher's mean and covariance.
        student: The student's.
        ridge: In squared units, or None for the loss's own.
    """
    width = len(teacher[0])
    divergence = isinstance(loss, GaussianKL)
    if divergence and ridge is None:
        ridge = loss.ridge * np.trace(teacher[1]) / width
    sides = []
    for mean, covariance in (student, teacher):
        if loss.covariance == "diagonal":
            covariance = np.diag(np.diag(covariance))
        if divergence:
            covariance = covariance + ridge * np.eye(width)
        sides += [mean, covariance]
    if not divergence:
        return reference.gaussian_squared_wasserstein(*sides)
    if loss.direction == "teacher||student":
        sides = sides[2:] + sides[:2]
    value = reference.gaussian_kl(*sides)
    return value / width if loss.per_dimension else value


def balanced(labels, other, masses):
    """Masses that give each class on both sides an equal share."""
    common = np.intersect1d(labels, other)
    result = np.zeros(len(labels))
    for label in common:
        own = labels == label
        result[own] = masses[own] / np.sum(masses[own]) / len(common)
    return result.astype("float32")


@pytest.mark.parametrize(
    "loss",
    [
        GaussianWasserstein(),
        GaussianWasserstein("diagonal"),
        GaussianKL(),
        GaussianKL("diagonal", direction="teacher||student"),
        GaussianKL(direction="teacher||student", ridge=0.5),
        GaussianKL(per_dimension=False),
    ],
)
@pytest.mark.parametrize("width", [5, 20])
def test_value_with_weights_agrees_with_dense_matrices(loss, width):
    y_true, y_pred = signals(width=width)
    for weights in (np.ones(12), [3, 1, 0, 2, 1, 1, 1, 1, 0, 1, 1, 1]):
        masses = weights / np.sum(weights)
        value = expected(
            loss,
            reference.moments(y_true, masses),
            reference.moments(y_pred, masses),
        )
        np.testing.assert_allclose(
            loss(y_true, y_pred, sample_weight=weights),
            value * np.mean(weights),
            rtol=1e-5,
        )


def test_divergence_is_the_students_from_the_teacher():
    """Of a narrow student a wide teacher is far, not the other way round.

    N(0, 1) from N(0, 9) with 0.9 on both: 1/2 (1.9/9.9 - 1 + log(9.9/1.9)).
    """
    teacher, student = [[-3.0], [3.0]], [[-1.0], [1.0]]
    np.testing.assert_allclose(
        GaussianKL()(teacher, student),
        (1.9 / 9.9 - 1 + np.log(9.9 / 1.9)) / 2,
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        GaussianKL(direction="teacher||student")(teacher, student),
        (9.9 / 1.9 - 1 + np.log(1.9 / 9.9)) / 2,
        rtol=1e-5,
    )


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_maps_are_compared_as_vectors(loss_class, covariance):
    maps = signals(8, 18).reshape(2, 8, 3, 3, 2)
    loss = loss_class(covariance)
    np.testing.assert_array_equal(loss(*maps), loss(*maps.reshape(2, 8, 18)))


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_by_class_is_the_mean_over_classes(loss_class, covariance):
    """Class 2 has one example, class 3 none with the student."""
    loss = loss_class(covariance)
    y_true, y_pred = signals()
    teacher = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 3])
    student = np.array([1, 0, 1, 0, 0, 0, 1, 1, 1, 2, 0, 1])
    weights = np.random.default_rng(1).uniform(0.5, 2.0, size=12)
    masses = (
        balanced(teacher, student, weights),
        balanced(student, teacher, weights),
    )
    ridge = None
    if isinstance(loss, GaussianKL):
        _, together = reference.moments(y_true, masses[0])
        ridge = loss.ridge * np.trace(together) / y_true.shape[1]
    values = []
    for label in (0, 1, 2):
        moments = [
            reference.moments(signal, 3 * mass * (labels == label))
            for signal, labels, mass in zip(
                (y_true, y_pred), (teacher, student), masses, strict=True
            )
        ]
        values.append(expected(loss, *moments, ridge))
    value = loss.conditional_distance(
        tf.constant(y_true), tf.constant(y_pred), masses, (teacher, student)
    )
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_wrapped_by_class_is_the_mean_of_each_class_alone(
    covariance, jit_compile
):
    """Weights and all; labels of a student that has no class 2."""
    loss = ClassConditional(GaussianWasserstein(covariance))
    y_true, y_pred = signals()
    teacher = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    student = np.array([1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 1])
    weights = np.float32([1, 2, 1, 1, 3, 1, 0, 1, 1, 2, 1, 1])

    def evaluate(y_true, y_pred):
        return loss(
            {"features": y_true, "labels": teacher},
            {"features": y_pred, "labels": student},
            sample_weight=weights,
        )

    if jit_compile is not None:
        evaluate = tf.function(evaluate, jit_compile=jit_compile)
    values = []
    for label in (0, 1):
        moments = []
        for signal, labels in ((y_true, teacher), (y_pred, student)):
            own = weights * (labels == label)
            moments.append(reference.moments(signal, own / np.sum(own)))
        values.append(expected(loss.loss, *moments))
    np.testing.assert_allclose(
        evaluate(tf.constant(y_true), tf.constant(y_pred)),
        np.mean(values) * np.mean(weights),
        rtol=1e-5,
    )


@pytest.mark.parametrize("loss_class", BOTH)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_by_class_without_any_is_zero(loss_class, covariance):
    y_true, y_pred = (tf.constant(side) for side in signals())
    nothing = tf.zeros(12)
    labels = tf.zeros(12, tf.int64), tf.ones(12, tf.int64)
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        value = loss_class(covariance).conditional_distance(
            y_true, y_pred, (nothing, nothing), labels
        )
    assert value == 0
    np.testing.assert_array_equal(tape.gradient(value, y_pred), 0.0)


@pytest.mark.parametrize("loss_class", BOTH)
def test_other_points_of_equal_moments_are_no_further(loss_class):
    """The points, turned among the examples: every one moves, no moment."""
    y_true, _ = signals()
    mean = np.mean(y_true, axis=0)
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(
        np.column_stack([np.ones(12), rng.normal(size=(12, 11))])
    )
    basis = basis[:, 1:]  # of the vectors that sum to zero
    turn, _ = np.linalg.qr(rng.normal(size=(11, 11)))
    y_pred = basis @ turn @ basis.T @ (y_true - mean) + mean
    assert np.mean((y_true - y_pred) ** 2) > 0.5
    value = loss_class()(y_true, np.float32(y_pred))
    np.testing.assert_allclose(value, 0.0, atol=2e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianWasserstein("scalar"), "`covariance`.*'diagonal'"),
        (lambda: GaussianKL("scalar"), "`covariance`.*'diagonal'"),
        (lambda: GaussianKL(ridge=0), "`ridge`.*> 0"),
        (lambda: GaussianKL(direction="forward"), r"`direction`.*'student\|\|"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "loss",
    [
        GaussianWasserstein("diagonal"),
        GaussianKL(
            "diagonal",
            direction="teacher||student",
            ridge=0.3,
            per_dimension=False,
        ),
    ],
)
def test_settings_are_saved(loss):
    saved = keras.saving.serialize_keras_object(loss)
    restored = keras.saving.deserialize_keras_object(saved)
    np.testing.assert_array_equal(restored(*signals()), loss(*signals()))
    assert restored.get_config() == loss.get_config()
    assert restored(*signals()) != type(loss)()(*signals())
