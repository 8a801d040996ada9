"""What `keras.distillation` of Keras 3.15.1 does wrong, done right.

Each test states the right behaviour by value. None asserts that the peer is
still wrong, so that a mended Keras breaks nothing here.
"""

import keras
import numpy as np
import pytest

import tfkd


@pytest.fixture
def networks(make_network):
    student = make_network(seed=1, name="student")
    return student, make_network(6, seed=2, name="teacher")


def _compiled(networks, matches, **kwargs):
    student, teacher = networks
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=matches
    )
    distiller.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **kwargs,
    )
    return distiller


def test_soft_targets_are_softened_probabilities_not_clipped_logits():
    """T^2 KL(softmax(t/T) || softmax(s/T)) in float64 NumPy."""
    rng = np.random.default_rng(0)
    teacher, student = 3 * rng.normal(size=(2, 16, 10))

    def log_softmax(logits):
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    p, q = log_softmax(teacher / 4), log_softmax(student / 4)
    expected = 16 * np.mean(np.sum(np.exp(p) * (p - q), axis=-1))
    actual = tfkd.losses.SoftTargets(temperature=4.0)(teacher, student)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_features_and_outputs_come_from_one_forward_pass(networks, images):
    """BatchNormalization's statistics move once in a step, not twice."""
    student, _ = networks
    norm = student.get_layer("norm1")
    before = norm.moving_mean.numpy()
    inner = keras.Model(student.input, student.get_layer("conv1").output)
    batch_mean = np.mean(inner(images[0]), axis=(0, 1, 2))
    matches = [tfkd.Match("mse", at="features", projector="dense")]
    distiller = _compiled(networks, matches)
    distiller.train_on_batch(*images)
    expected = 0.99 * before + 0.01 * batch_mean
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-5)


def test_evaluate_moves_no_statistics(networks, images):
    student, _ = networks
    matches = [tfkd.Match("mse", at="features", projector="dense")]
    distiller = _compiled(networks, matches)
    before = [variable.numpy() for variable in student.variables]
    distiller.evaluate(*images, verbose=0)
    for variable, value in zip(student.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_sample_weights_reach_the_distillation_loss(networks, images):
    """All weight, 8, on the first example: its own value."""
    student, teacher = networks
    x, y = images
    distiller = _compiled(networks, [tfkd.Match("mse", name="m")])
    logs = distiller.evaluate(
        x,
        y,
        sample_weight=np.array([8.0] + [0.0] * 7),
        batch_size=8,
        verbose=0,
        return_dict=True,
    )
    expected = np.mean((student(x[:1]) - teacher(x[:1])) ** 2)
    np.testing.assert_allclose(logs["m"], expected, rtol=1e-4)


def test_the_students_regularisers_are_kept(make_network, images):
    student = make_network(
        seed=1, name="student", regularizer=keras.regularizers.L2(0.1)
    )
    networks = student, make_network(6, seed=2, name="teacher")
    logs = _compiled(networks, [tfkd.Match("mse", name="m")]).evaluate(
        *images, verbose=0, return_dict=True
    )
    penalty = 0.1 * sum(
        np.sum(variable.numpy() ** 2)
        for variable in student.trainable_variables
        if variable.path.endswith("kernel")
    )
    np.testing.assert_allclose(
        logs["loss"] - logs["label_loss"] - logs["m"], penalty, rtol=1e-4
    )


@pytest.mark.parametrize("side", ["projector", "teacher_projector"])
def test_projectors_train(networks, images, side):
    match = tfkd.Match("mse", at="features", **{side: "dense"})
    distiller = _compiled(networks, [match])
    before = [variable.numpy() for variable in match.trainable_variables]
    distiller.train_on_batch(*images)
    assert len(before) == 2
    for variable, value in zip(match.variables, before, strict=True):
        assert np.max(np.abs(variable.numpy() - value)) > 1e-4


def test_a_saved_file_goes_on_training(networks, images, tmp_path):
    matches = [tfkd.Match("mse", at="features", projector="dense")]
    distiller = _compiled(networks, matches)
    distiller.train_on_batch(*images)
    distiller.save(tmp_path / "distiller.keras")
    again = tfkd.Distiller.load(
        tmp_path / "distiller.keras", teacher=networks[1]
    )
    distiller.reset_metrics()
    ours = distiller.train_on_batch(*images, return_dict=True)
    theirs = again.train_on_batch(*images, return_dict=True)
    assert theirs.keys() == ours.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(theirs[key], value, rtol=1e-5)
    for one, other in zip(
        distiller.trainable_variables, again.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
