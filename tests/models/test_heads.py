"""`tfkd.models.with_head`: a copy up to the features, and new logits."""

import keras
import numpy as np
import pytest

import tfkd.models

SHAPE = (8, 8, 3)


@pytest.fixture
def backbone(randomized):
    return randomized(
        tfkd.models.build(
            "resnet8", num_classes=100, input_shape=SHAPE, width=0.25
        )
    )


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(4, *SHAPE)).astype("float32")


def test_logits_are_a_new_layer_on_the_backbones_features(backbone, images):
    model = tfkd.models.with_head(backbone, num_classes=7)
    features = keras.Model(
        backbone.input, backbone.get_layer("features").output
    )(images)
    kernel, bias = model.get_layer("logits").get_weights()
    assert kernel.shape == (16, 7)
    np.testing.assert_allclose(
        model(images), features @ kernel + bias, rtol=1e-5, atol=1e-6
    )
    assert model.output_shape == (None, 7)
    assert model.name == "resnet8"
    assert [layer.name for layer in model.layers] == [
        layer.name for layer in backbone.layers
    ]


def test_the_backbone_shares_nothing_and_stays_as_it_was(backbone, images):
    expected = [variable.numpy() for variable in backbone.variables]
    outputs = backbone(images, training=False)
    model = tfkd.models.with_head(backbone, num_classes=2)
    assert not {id(v) for v in model.variables} & {
        id(v) for v in backbone.variables
    }
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.train_on_batch(images, np.array([0, 1, 0, 1]))
    for variable, value in zip(backbone.variables, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    np.testing.assert_array_equal(backbone(images, training=False), outputs)


def test_the_copy_normalises_inputs_as_the_backbone(images):
    """As networks of `keras.applications` do, with what they were given."""
    scale = keras.layers.Normalization()
    scale.adapt(5.0 * images + 7.0)
    backbone = keras.Sequential(
        [keras.Input(SHAPE), scale, keras.layers.Conv2D(4, 3)]
    )
    model = tfkd.models.with_head(backbone, num_classes=2)
    features = keras.Model(model.input, model.get_layer("features").output)
    np.testing.assert_allclose(
        features(images), np.mean(backbone(images), axis=(1, 2)), rtol=1e-5
    )


def test_frozen_layers_stay_frozen(backbone):
    for layer in backbone.layers[:5]:
        layer.trainable = False
    model = tfkd.models.with_head(backbone, num_classes=2)
    trains = [layer.trainable for layer in model.layers[1:]]
    assert trains == [layer.trainable for layer in backbone.layers[1:]]
    assert trains[:4] == [False] * 4
    assert all(trains[4:])


def test_any_layer_that_returns_a_vector_will_do(images):
    """Also of a Sequential model, and below a dense layer of its own."""
    backbone = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(5, name="hidden"),
            keras.layers.Dense(4, name="scores"),
        ],
        name="mlp",
    )
    model = tfkd.models.with_head(backbone, num_classes=3, at="hidden")
    kernel, bias = model.get_layer("logits").get_weights()
    hidden = images.reshape(4, -1) @ backbone.get_layer("hidden").kernel.numpy()
    np.testing.assert_allclose(
        model(images), hidden @ kernel + bias, rtol=1e-4, atol=1e-5
    )


def test_logits_are_float32_on_a_backbone_of_16_bits(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        backbone = tfkd.models.build(
            "resnet8", num_classes=5, input_shape=SHAPE, width=0.25
        )
        model = tfkd.models.with_head(backbone, num_classes=3)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("features").compute_dtype == "bfloat16"
    assert model(images).dtype == "float32"


def test_returns_from_a_file_with_equal_outputs(backbone, images, tmp_path):
    model = tfkd.models.with_head(backbone, num_classes=3)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(images), restored(images))


def test_unknown_layer_is_refused_with_the_nearest(backbone):
    with pytest.raises(ValueError, match=r"at='feature'.*'features'"):
        tfkd.models.with_head(backbone, num_classes=3, at="feature")


def test_maps_are_averaged(backbone, images):
    model = tfkd.models.with_head(backbone, num_classes=3, at="stage3")
    stage = keras.Model(backbone.input, backbone.get_layer("stage3").output)
    kernel, bias = model.get_layer("logits").get_weights()
    expected = stage(images).numpy().mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)
    names = [layer.name for layer in model.layers[-2:]]
    assert names == ["features", "logits"]


def test_sequences_are_no_features():
    backbone = keras.Sequential([keras.Input((4, 3))], name="words")
    backbone.add(keras.layers.Conv1D(5, 2, name="last"))
    with pytest.raises(
        ValueError, match=r"\[batch, dim\].*at=None.*\(None, 3, 5\)"
    ):
        tfkd.models.with_head(backbone, num_classes=3)


@pytest.mark.parametrize(
    ("options", "pools"),
    [
        ({"include_top": False}, True),
        ({"include_top": False, "pooling": "avg"}, False),
        ({"include_top": True, "classes": 7}, False),
    ],
    ids=["maps", "vectors", "classifier"],
)
def test_networks_of_keras_applications_need_no_name(options, pools):
    """A new head on the pooled maps, whatever stood on them."""
    shape = (32, 32, 3)
    backbone = keras.applications.MobileNetV2(
        shape, alpha=0.35, weights=None, **options
    )
    model = tfkd.models.with_head(backbone, num_classes=5)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    maps = keras.Model(backbone.input, backbone.get_layer("out_relu").output)
    kernel, bias = model.get_layer("logits").get_weights()
    expected = maps(x).numpy().mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert ("features" in [layer.name for layer in model.layers]) == pools


class Subclassed(keras.Model):
    """Its layers' order is not known."""


@pytest.mark.parametrize(
    "value",
    [None, "resnet8", Subclassed(), keras.Sequential([keras.layers.Dense(2)])],
)
def test_backbone_must_be_a_built_model_of_known_layers(value):
    with pytest.raises(ValueError, match="`backbone`.*Functional"):
        tfkd.models.with_head(value, num_classes=3)


@pytest.mark.parametrize("num_classes", [0, 2.0, True, None])
def test_number_of_classes_must_be_a_positive_integer(backbone, num_classes):
    with pytest.raises(ValueError, match="`num_classes`"):
        tfkd.models.with_head(backbone, num_classes=num_classes)
