"""ShuffleNet V2 for small images."""

import network_reference
import numpy as np
import pytest
import tensorflow as tf

import tfkd.models

TINY = {"num_classes": 3, "input_shape": (8, 8, 2), "width": 0.05}


def count_trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_has_1355528_trainable_parameters_for_100_classes():
    """With h channels in a half, b before the stage.

    First block: left 9b + 2b + bh + 2h, right bh + 2h + 9h + 2h + hh + 2h.
    Each other block: hh + 2h + 9h + 2h + hh + 2h. Stem 3*24 + 2*24, last
    convolution 464*1024 + 2*1024, dense 1024*100 + 100.
    """
    total, before = 3 * 24 + 2 * 24, 24
    for half, others in ((58, 3), (116, 7), (232, 3)):
        total += 11 * before + before * half + 2 * half
        total += before * half + half * half + 15 * half
        total += others * (2 * half * half + 15 * half)
        before = 2 * half
    total += 464 * 1024 + 2 * 1024 + 1024 * 100 + 100
    model = tfkd.models.build("shufflenet-v2", num_classes=100)
    assert count_trainable(model) == total == 1355528


def test_stages_halve_the_maps_rounded_up():
    model = tfkd.models.build(
        "shufflenet-v2", num_classes=2, input_shape=(28, 34, 1), width=0.5
    )
    shapes = [
        model.get_layer(name).output.shape[1:]
        for name in ("stem", "stage1", "stage2", "stage3", "features")
    ]
    assert shapes == [
        (28, 34, 12),
        (14, 17, 58),
        (7, 9, 116),
        (4, 5, 232),
        (512,),
    ]


def test_halves_are_rounded_each_by_itself():
    """0.013 * 58 = 0.754, 0.013 * 116 = 1.508, 0.013 * 232 = 3.016."""
    model = tfkd.models.build("shufflenet-v2", num_classes=2, width=0.013)
    channels = [
        model.get_layer(f"stage{stage}").output.shape[-1] for stage in (1, 2, 3)
    ]
    assert channels == [2, 4, 6]


@pytest.mark.parametrize("size", [(8, 8), (9, 10)])
def test_network_computes_what_the_formula_says(size, float64, randomized):
    """The formula rectifies each new half and shuffles by index."""
    model = randomized(
        tfkd.models.build(
            "shufflenet-v2", **{**TINY, "input_shape": (*size, 2)}
        )
    )
    images = np.random.default_rng(0).normal(size=(2, *size, 2))
    np.testing.assert_allclose(
        model(images),
        network_reference.shufflenet_v2(
            images,
            lambda layer: model.get_layer(layer).get_weights(),
            blocks=(4, 8, 4),
        ),
        rtol=1e-9,
    )


def test_depthwise_kernels_are_scaled_to_their_nine_inputs():
    """Standard deviation sqrt(2 / 9) over 9 * 232 draws, 5 % apart."""
    model = tfkd.models.build("shufflenet-v2", num_classes=2)
    kernel = model.get_layer("stage3_block2_depthwise").kernel.numpy()
    assert kernel.shape == (3, 3, 232, 1)
    assert kernel.std() == pytest.approx(np.sqrt(2 / 9), rel=0.05)


def test_second_order_gradients_are_central_differences(float64, randomized):
    """Of |d logits / d images|^2 along a random direction of all weights."""
    model = randomized(tfkd.models.build("shufflenet-v2", **TINY))
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(2, 8, 8, 2)))
    weights = model.trainable_variables
    directions = [rng.normal(size=variable.shape) for variable in weights]

    def penalty():
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = tf.reduce_sum(model(images, training=False)[:, 0])
        return tf.reduce_sum(tape.gradient(outputs, images) ** 2)

    def slope():
        with tf.GradientTape() as tape:
            value = penalty()
        gradients = tape.gradient(value, [v.value for v in weights])
        return sum(
            tf.reduce_sum(gradient * direction)
            for gradient, direction in zip(gradients, directions, strict=True)
            if gradient is not None
        )

    def at(step):
        for variable, direction in zip(weights, directions, strict=True):
            variable.assign_add(step * direction)
        return float(penalty())

    expected = slope()
    difference = (at(1e-6) - at(-2e-6)) / 2e-6
    assert abs(difference) > 1e-3
    assert float(expected) == pytest.approx(difference, rel=1e-5)


def test_images_below_8_pixels_are_refused():
    with pytest.raises(ValueError, match=r"smallest that fits is \(8, 8, 3\)"):
        tfkd.models.build("shufflenet-v2", num_classes=2, input_shape=(7, 8, 3))
