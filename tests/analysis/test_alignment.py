"""Features in one plane keep what a plane can keep."""

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf

from tfkd.analysis import feature_alignment, plot_feature_alignment


@pytest.fixture
def data(images):
    return tf.data.Dataset.from_tensor_slices(images).batch(3)


def _features(model, x, layer):
    tap = keras.Model(model.inputs, model.get_layer(layer).output)
    return tap.predict(x, verbose=0).reshape(len(x), -1)


def test_equal_networks_have_equal_points(make_network, data):
    network = make_network(4, seed=1)
    result = feature_alignment(network, network, data)
    np.testing.assert_allclose(result.student, result.teacher, rtol=1e-12)
    assert result.distance == 0.0
    assert result.teacher.shape == (8, 2)


def test_batches_may_have_weights_or_no_labels(make_network, images):
    network = make_network(4, seed=1)
    x, y = images
    for parts, labelled in (
        ((x, y, np.ones(len(x))), True),
        ((x, y), True),
        ((x,), False),
    ):
        batches = tf.data.Dataset.from_tensor_slices(parts).batch(3)
        result = feature_alignment(network, network, batches)
        assert (result.labels is not None) == labelled


def test_points_lie_on_the_principal_axes(make_network, images, data):
    """Against the singular vectors of all features, centred."""
    student, teacher = make_network(4, seed=1), make_network(4, seed=2)
    result = feature_alignment(student, teacher, data, at="conv2")
    y_true = _features(teacher, images[0], "conv2")
    y_pred = _features(student, images[0], "conv2")
    stacked = np.concatenate([y_true, y_pred]).astype("float64")
    stacked -= stacked.mean(axis=0)
    expected = stacked @ np.linalg.svd(stacked, full_matrices=False)[2][:2].T
    points = np.concatenate([result.teacher, result.student])
    signs = np.sign(np.sum(points * expected, axis=0))
    np.testing.assert_allclose(points * signs, expected, rtol=1e-4, atol=1e-4)
    apart = np.linalg.norm(y_pred - y_true, axis=1).mean()
    spread = np.linalg.norm(y_true - y_true.mean(axis=0), axis=1).mean()
    assert result.distance == pytest.approx(apart / spread, rel=1e-4)
    np.testing.assert_array_equal(result.labels, images[1])


def test_a_projector_maps_the_student(make_network, images):
    student, teacher = make_network(3, seed=1), make_network(4, seed=2)
    projector = keras.layers.Dense(8)
    data = tf.data.Dataset.from_tensor_slices(images[0]).batch(4)
    result = feature_alignment(
        student, teacher, data, projector=projector, max_examples=5
    )
    assert result.student.shape == (5, 2)
    assert result.labels is None
    with pytest.raises(ValueError, match="width 6, the teacher's 8"):
        feature_alignment(student, teacher, data)


def test_neighbours_stay_together(make_network):
    """t-SNE of two far groups keeps them apart."""
    network = make_network(4, seed=1)
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 12)
    x = rng.normal(size=(24, 8, 8, 2)) * 0.05 + 3.0 * group[:, None, None, None]
    data = tf.data.Dataset.from_tensor_slices(
        (x.astype("float32"), np.eye(2)[group])
    )
    result = feature_alignment(network, network, data.batch(8), method="tsne")
    np.testing.assert_array_equal(result.labels, group)
    centres = np.stack([result.teacher[group == g].mean(0) for g in (0, 1)])
    nearest = np.linalg.norm(result.teacher[:, None] - centres, axis=-1).argmin(
        axis=1
    )
    np.testing.assert_array_equal(nearest, group)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "umap"}, "`method`"),
        ({"max_examples": 0}, "`max_examples`"),
        ({"max_examples": 2}, "at least three"),
        ({"at": "feature"}, "has no layer 'feature'"),
        ({"at": 1}, "`at`"),
        ({"at": ("features",)}, "`at`"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message, make_network, data):
    network = make_network(4)
    with pytest.raises(ValueError, match=message):
        feature_alignment(network, network, data, **kwargs)


def test_no_network_is_refused(make_network, data):
    with pytest.raises(ValueError, match="`teacher`"):
        feature_alignment(make_network(4), None, data)


def test_features_that_are_not_finite_are_named(make_network, data):
    network, spoilt = make_network(4), make_network(4)
    spoilt.set_weights([np.nan * weight for weight in spoilt.get_weights()])
    with pytest.raises(ValueError, match="teacher's features are not finite"):
        feature_alignment(network, spoilt, data)


def test_the_picture_shows_both_networks(make_network, data, tmp_path):
    result = feature_alignment(
        make_network(4, seed=1), make_network(4, seed=2), data
    )
    path = tmp_path / "alignment.png"
    plot_feature_alignment({"baseline": result, "w2": result}, path)
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.shape[1] > 1.5 * pixels.shape[0]
    for color in ((0.84, 0.37, 0.0), (0.0, 0.45, 0.70)):
        # Points are half transparent on white.
        shown = 0.5 * np.array(color) + 0.5
        assert np.any(np.abs(pixels - shown).max(axis=-1) < 0.03)
    with pytest.raises(ValueError, match="`results`"):
        plot_feature_alignment({}, path)
