"""Residual networks for small images."""

import network_reference
import numpy as np
import pytest

import tfkd.models


def count_trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_resnet8_has_78042_trainable_parameters_for_10_classes():
    """By hand, weights and then scales and offsets.

    Stem 9*3*16 + 2*16 = 464. Stage 1 has two convolutions of 9*16*16, each
    with 2*16: 4672. Stage 2: 9*16*32 + 9*32*32 and the shortcut's 16*32,
    three times 2*32: 14528. Stage 3: 9*32*64 + 9*64*64 + 32*64, three times
    2*64: 57728. Dense layer 64*10 + 10 = 650.
    """
    model = tfkd.models.build("resnet8", num_classes=10)
    assert count_trainable(model) == 464 + 4672 + 14528 + 57728 + 650 == 78042


def plain_count(depth, stem, channels, classes):
    """Of a network whose first stage keeps the stem's channels or not."""
    total = 27 * stem + 2 * stem
    before = stem
    for stage, count in enumerate(channels):
        if stage or before != count:
            total += before * count + 2 * count  # the shortcut
        total += 9 * before * count + 2 * count
        convs = (depth - 2) // 3 - 1
        total += convs * (9 * count * count + 2 * count)
        before = count
    return total + before * classes + classes


@pytest.mark.parametrize(
    ("name", "depth", "stem", "channels", "millions"),
    [
        ("resnet8", 8, 16, (16, 32, 64), None),
        ("resnet14", 14, 16, (16, 32, 64), None),
        ("resnet20", 20, 16, (16, 32, 64), 0.28),
        ("resnet32", 32, 16, (16, 32, 64), None),
        ("resnet44", 44, 16, (16, 32, 64), None),
        ("resnet56", 56, 16, (16, 32, 64), 0.86),
        ("resnet110", 110, 16, (16, 32, 64), 1.74),
        ("resnet56-slim", 56, 8, (8, 16, 32), None),
        ("resnet8x4", 8, 32, (64, 128, 256), 1.23),
        ("resnet32x4", 32, 32, (64, 128, 256), 7.43),
    ],
)
def test_trainable_parameters_for_100_classes(
    name, depth, stem, channels, millions
):
    """The sum over the layers; Lohit & Jones 2020, appendix A, in millions."""
    model = tfkd.models.build(name, num_classes=100)
    count = count_trainable(model)
    assert count == plain_count(depth, stem, channels, 100)
    assert millions in (None, round(count / 1e6, 2))


def test_resnet8_names_its_layers():
    model = tfkd.models.build("resnet8", num_classes=10)
    expected = ["images", "stem_conv", "stem_norm", "stem"]
    for stage in ("stage1", "stage2", "stage3"):
        block = f"{stage}_block1"
        padding, shortcut = [], []
        if stage != "stage1":
            padding = [f"{block}_conv1_pad"]
            shortcut = [
                f"{block}_shortcut_{layer}"
                for layer in ("conv_pixels", "conv", "norm")
            ]
        expected += [
            *padding,
            *(f"{block}_conv1", f"{block}_norm1", f"{block}_relu1"),
            *(f"{block}_conv2", f"{block}_norm2", *shortcut),
            *(f"{stage}_preactivation", stage),
        ]
    expected += ["features", "logits"]
    assert sorted(layer.name for layer in model.layers) == sorted(expected)


def test_stages_halve_the_maps_rounded_up():
    model = tfkd.models.build(
        "resnet8x4", num_classes=10, input_shape=(28, 30, 1), width=0.25
    )
    shapes = [
        model.get_layer(name).output.shape[1:]
        for name in ("stem", "stage1", "stage2", "stage3", "features")
    ]
    assert shapes == [
        (28, 30, 8),
        (28, 30, 16),
        (14, 15, 32),
        (7, 8, 64),
        (64,),
    ]


@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet14", 2)])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_network_computes_what_the_formula_says(
    name, blocks, size, float64, randomized
):
    """Strided convolutions look at the pixels that the shortcut takes."""
    model = randomized(
        tfkd.models.build(
            name, num_classes=3, input_shape=(*size, 2), width=0.2
        )
    )
    images = np.random.default_rng(0).normal(size=(2, *size, 2))
    np.testing.assert_allclose(
        model(images),
        network_reference.basic_resnet(
            images,
            lambda layer: model.get_layer(layer).get_weights(),
            blocks=[blocks] * 3,
            strides=[1, 2, 2],
        ),
        rtol=1e-9,
    )


def test_kernels_are_he_normal_of_the_fan_out():
    """Standard deviation sqrt(2 / (9 * 256)) over 9 * 128 * 256 draws."""
    model = tfkd.models.build("resnet8x4", num_classes=10)
    kernel = model.get_layer("stage3_block1_conv1").kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    assert abs(kernel).max() > 3 * kernel.std()  # not cut off at two


def test_layers_of_one_shape_start_with_weights_of_their_own():
    model = tfkd.models.build("resnet14", num_classes=10)
    first, second = (
        model.get_layer(f"stage1_block{block}_conv1").kernel.numpy()
        for block in (1, 2)
    )
    assert np.all(first != second)


def test_images_below_4_pixels_are_refused():
    shape = (4, 4, 1)
    fits = tfkd.models.build("resnet8", num_classes=2, input_shape=shape)
    assert fits.get_layer("stage3").output.shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=r"smallest that fits is \(4, 4, 3\)"):
        tfkd.models.build("resnet8", num_classes=2, input_shape=(3, 32, 3))
