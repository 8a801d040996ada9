"""`tfkd.models.build`: what it promises of every network, what it refuses."""

import keras
import numpy as np
import pytest

import tfkd.models

SHAPE = (32, 32, 1)


@pytest.fixture
def restore_policy():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize("name", tfkd.models.NAMES)
def test_builds_a_flat_functional_model_with_the_published_taps(name):
    model = tfkd.models.build(
        name, num_classes=7, input_shape=SHAPE, width=0.05
    )
    names = [layer.name for layer in model.layers]
    assert type(model).__name__ == "Functional"
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.name == name
    assert {"stem", "stage1", "features", "logits"} <= set(names)
    assert model.get_layer("features").output.ndim == 2
    assert model.output is model.get_layer("logits").output
    assert model.output_shape == (None, 7)


@pytest.mark.parametrize("name", tfkd.models.NAMES)
def test_outputs_logits_and_no_probabilities(name):
    model = tfkd.models.build(
        name, num_classes=7, input_shape=SHAPE, width=0.05
    )
    assert model.get_layer("logits").activation is keras.activations.linear


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("float32", "float32"),
        ("mixed_float16", "float32"),
        ("mixed_bfloat16", "float32"),
        ("bfloat16", "float32"),
        ("float64", "float64"),
    ],
)
def test_logits_are_float32_at_least(restore_policy, policy, expected):
    """The narrowest policy keeps its own type up to the features."""
    keras.config.set_dtype_policy(policy)
    model = tfkd.models.build(
        "vgg4", num_classes=3, input_shape=SHAPE, width=0.05
    )
    logits = model(np.ones((2, *SHAPE)))
    assert model.get_layer("features").output.dtype == (
        keras.config.dtype_policy().compute_dtype
    )
    assert logits.dtype == expected


# Keras' own writer of weights trips over NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("name", tfkd.models.NAMES)
def test_saved_model_returns_with_its_weights_and_outputs(name, tmp_path):
    keras.utils.set_random_seed(1)
    model = tfkd.models.build(
        name, num_classes=5, input_shape=SHAPE, width=0.05
    )
    images = np.random.default_rng(0).normal(size=(4, *SHAPE))
    model(images, training=True)  # Moves the statistics off their start.
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in restored.layers] == [
        layer.name for layer in model.layers
    ]
    for saved, loaded in zip(model.weights, restored.weights, strict=True):
        np.testing.assert_array_equal(saved.numpy(), loaded.numpy())
    np.testing.assert_array_equal(
        model(images, training=False), restored(images, training=False)
    )


def test_numpy_integers_are_integers():
    """`labels.max() + 1` is what users have at hand."""
    model = tfkd.models.build(
        "vgg4",
        num_classes=np.int64(3),
        input_shape=np.zeros(SHAPE).shape,
        width=np.float32(0.05),
    )
    assert model.output_shape == (None, 3)


def test_unknown_name_is_refused_with_the_list_and_the_nearest():
    with pytest.raises(ValueError, match="Expected one of") as error:
        tfkd.models.build("vgg-9", num_classes=10)
    assert all(name in str(error.value) for name in tfkd.models.NAMES)
    assert "Received: name='vgg-9'. Did you mean 'vgg9'?" in str(error.value)


@pytest.mark.parametrize("name", [None, 4, ["resnet"], "transformer"])
def test_name_like_no_other_is_refused_without_a_guess(name):
    with pytest.raises(ValueError, match="`name`") as error:
        tfkd.models.build(name, num_classes=10)
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("num_classes", [0, -1, 10.0, True, "10", None])
def test_number_of_classes_must_be_a_positive_integer(num_classes):
    with pytest.raises(ValueError, match="`num_classes`"):
        tfkd.models.build("vgg4", num_classes=num_classes)


@pytest.mark.parametrize(
    "width", [0, -0.5, float("nan"), float("inf"), True, "1", None]
)
def test_width_must_be_positive_and_finite(width):
    with pytest.raises(ValueError, match="`width`"):
        tfkd.models.build("vgg4", num_classes=10, width=width)


@pytest.mark.parametrize(
    "input_shape",
    [(32, 32), (1, 32, 32, 3), (None, None, 3), (32, 32, 0), (32.0, 32, 3), 32],
)
def test_input_shape_must_be_that_of_an_image(input_shape):
    with pytest.raises(ValueError, match="`input_shape`"):
        tfkd.models.build("vgg4", num_classes=10, input_shape=input_shape)
