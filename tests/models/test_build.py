"""`tfkd.models.build`: what it promises of every network, what it refuses."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd.export
import tfkd.models

SHAPE = (32, 32, 1)
# The network of 1001 layers takes ten seconds to build; its own test does.
NAMES = [name for name in tfkd.models.NAMES if name != "resnet1001"]
# One of each kind, shallow.
KINDS = ["vgg4", "vgg8", "resnet8", "wrn-16-2", "resnet18", "shufflenet-v2"]
STAGES = {
    **dict.fromkeys(NAMES, 3),
    **{"vgg8": 4, "vgg9": 5, "vgg13": 4},
    **{name: 4 for name in NAMES if re.match("resnet(18|34)", name)},
}


@pytest.fixture(scope="module")
def narrow(randomized):
    """A function, name -> a network for seven classes to leave as it is."""

    @functools.cache
    def network(name):
        return randomized(
            tfkd.models.build(
                name, num_classes=7, input_shape=SHAPE, width=0.05
            )
        )

    return network


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *SHAPE)).astype("float32")


@pytest.fixture
def restore_policy():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


def stages_of(model):
    names = [layer.name for layer in model.layers]
    return [name for name in names if re.fullmatch(r"stage\d+", name)]


@pytest.mark.parametrize("name", NAMES)
def test_builds_a_flat_functional_model_with_the_published_taps(name, narrow):
    model = narrow(name)
    names = {layer.name for layer in model.layers}
    assert type(model).__name__ == "Functional"
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.name == name
    assert stages_of(model) == [f"stage{k + 1}" for k in range(STAGES[name])]
    assert {f"{stage}_preactivation" for stage in stages_of(model)} <= names
    assert {"stem", "features", "logits"} <= names
    assert model.get_layer("features").output.ndim == 2
    assert model.output is model.get_layer("logits").output
    assert model.output_shape == (None, 7)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_logits_and_no_probabilities(name, narrow):
    logits = narrow(name).get_layer("logits")
    assert logits.activation is keras.activations.linear


@pytest.mark.parametrize("name", NAMES)
def test_all_layers_are_those_of_keras(name, narrow):
    """So a saved network needs no tfkd."""
    for operation in narrow(name).operations:
        assert type(operation).__module__.startswith("keras.")


@pytest.mark.parametrize("name", NAMES)
def test_no_kernel_of_one_pixel_strides(name, narrow):
    """Their gradient in TensorFlow 2.21 corrupts the memory on some CPUs.

    `tf.nn.conv2d` on [25, 32, 32, 4] with a kernel [1, 1, 4, 8] and stride 2
    ends the process within 30 gradients, but for TF_ENABLE_ONEDNN_OPTS=0.
    """
    for layer in narrow(name).layers:
        if getattr(layer, "kernel_size", None) == (1, 1):
            assert layer.strides == (1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_preactivations_enter_the_last_relu_of_their_stage(name, narrow):
    """Their positive part is that ReLU's output, and they have negatives."""
    model = narrow(name)
    stages = [model.get_layer(stage) for stage in stages_of(model)]
    if name in ("vgg4", "vgg9"):
        activations = [pool.input for pool in stages]
    elif name.startswith("wrn"):
        relus = [f"{stage.name}_relu" for stage in stages]
        activations = [model.get_layer(relu).output for relu in relus]
    else:
        activations = [stage.output for stage in stages]
    before = [f"{stage.name}_preactivation" for stage in stages]
    preactivations = [model.get_layer(tap).output for tap in before]
    taps = keras.Model(model.input, [preactivations, activations])
    for preactivation, activation in zip(*taps(images(4)), strict=True):
        assert np.min(preactivation) < 0 < np.max(preactivation)
        np.testing.assert_array_equal(np.maximum(preactivation, 0), activation)


@pytest.mark.parametrize("name", KINDS)
def test_width_scales_the_channels_of_every_stage(name):
    """At 1/8 and 1/4 the channels are whole numbers, twice as many.

    But for the halves of shufflenet-v2, 58 and 116 channels, which are
    rounded.
    """
    one, two = (
        tfkd.models.build(name, num_classes=2, input_shape=SHAPE, width=width)
        for width in (0.125, 0.25)
    )
    for tap in ("stem", *stages_of(one), "features"):
        channels = [m.get_layer(tap).output.shape[-1] for m in (one, two)]
        if name == "shufflenet-v2" and tap.startswith("stage"):
            full = {"stage1": 58, "stage2": 116, "stage3": 232}[tap]
            assert channels == [2 * round(full / 8), 2 * round(full / 4)]
        else:
            assert channels[1] == 2 * channels[0] > 0


@pytest.mark.parametrize("shape", [(28, 28, 1), (64, 64, 3), (33, 47, 2)])
@pytest.mark.parametrize("name", KINDS)
def test_images_of_other_shapes(name, shape):
    if name == "resnet18":
        shape = (2 * shape[0], 2 * shape[1], shape[2])  # 32 pixels or more
    model = tfkd.models.build(
        name, num_classes=3, input_shape=shape, width=0.05
    )
    assert model.input_shape == (None, *shape)
    assert model(np.ones((2, *shape))).shape == (2, 3)


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
@pytest.mark.parametrize("name", NAMES)
def test_saved_model_returns_with_its_weights_and_outputs(
    name, tmp_path, narrow
):
    model = narrow(name)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in restored.layers] == [
        layer.name for layer in model.layers
    ]
    for saved, loaded in zip(model.weights, restored.weights, strict=True):
        np.testing.assert_array_equal(saved.numpy(), loaded.numpy())
    np.testing.assert_array_equal(
        model(images(4), training=False), restored(images(4), training=False)
    )


@pytest.mark.parametrize(
    ("name", "policy"),
    [("resnet8", "mixed_float16"), *[(n, "mixed_bfloat16") for n in KINDS]],
)
def test_trains_in_mixed_precision(restore_policy, name, policy):
    """One step moves every weight and keeps it in float32."""
    keras.config.set_dtype_policy(policy)
    model = tfkd.models.build(name, num_classes=3, input_shape=SHAPE, width=0.1)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    labels = np.arange(6) % 3
    assert np.isfinite(model.train_on_batch(images(6), labels))
    for variable, start in zip(model.trainable_variables, before, strict=True):
        assert variable.dtype == "float32"
        assert np.all(np.isfinite(variable))
        assert np.any(variable.numpy() != start), variable.path
    assert model.get_layer("stage1").compute_dtype == (
        keras.config.dtype_policy().compute_dtype
    )


@pytest.mark.parametrize("name", KINDS)
def test_xla_computes_the_same(name, narrow):
    model = narrow(name)
    compiled = tf.function(model, jit_compile=True)
    np.testing.assert_allclose(
        compiled(images(3)), model(images(3)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn-16-2", "resnet18", "shufflenet-v2"]
)
def test_tflite_file_computes_the_same(name, narrow, tmp_path):
    model = narrow(name)
    report = tfkd.export.export_student(
        model, tmp_path, formats=["tflite"], check=images(5)
    )
    assert report["tflite"].max_difference < 1e-4
    # Not because all outputs are the same.
    assert np.std(tfkd.export.predict(report["tflite"].path, images(5))) > 1e-3


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


@pytest.mark.parametrize("name", KINDS)
def test_synchronizes_every_batch_normalization_by_a_switch(name):
    """On two replicas, tests/matches/test_replicas.py compares numbers."""
    options = {"num_classes": 3, "input_shape": SHAPE, "width": 0.05}
    for synchronized in (False, True):
        model = tfkd.models.build(name, synchronized=synchronized, **options)
        again = keras.models.clone_model(model)
        for network in (model, again):
            norms = [
                layer.synchronized
                for layer in network.layers
                if isinstance(layer, keras.layers.BatchNormalization)
            ]
            assert norms
            assert set(norms) == {synchronized}
    with pytest.raises(ValueError, match="Received: synchronized='yes'"):
        tfkd.models.build(name, synchronized="yes", **options)
