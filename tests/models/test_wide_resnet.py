"""Pre-activation networks: wide ones, and one of 1001 layers."""

import network_reference
import numpy as np
import pytest

import tfkd.models


def count_trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def wide_count(depth, factor, classes):
    """9 weights per pair of channels; a shortcut in each first block."""
    total, before = 27 * 16, 16
    for channels in (16 * factor, 32 * factor, 64 * factor):
        total += 2 * before + 9 * before * channels + before * channels
        convs = (depth - 4) // 3 - 1
        total += convs * (2 * channels + 9 * channels * channels)
        before = channels
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize(
    ("name", "depth", "factor", "millions"),
    [
        ("wrn-16-2", 16, 2, 0.70),
        ("wrn-40-2", 40, 2, 2.25),
        ("wrn-28-10", 28, 10, 36.54),
    ],
)
def test_trainable_parameters_for_100_classes(name, depth, factor, millions):
    """Lohit & Jones 2020, appendix A, and to 0.01 million.

    Zagoruyko & Komodakis 2016 print 36.5 million for WRN-28-10.
    """
    model = tfkd.models.build(name, num_classes=100)
    count = count_trainable(model)
    assert count == wide_count(depth, factor, 100)
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_resnet1001_has_1001_layers_and_10_million_parameters():
    """333 bottlenecks of three convolutions, a stem, a dense layer.

    A block of c channels has c/4 inside: c c/4 + 9 c/4 c/4 + c/4 c = 17/16
    c^2 weights and 2 (c + c/4 + c/4) = 3 c scales and offsets. The first of
    a stage, from b channels: b c/4 + 9/16 c^2 + c^2/4 + b c, and 2b + c. He
    et al. print 10.2 million for 10 classes.
    """
    total, before = 27 * 16, 16
    for c in (64, 128, 256):
        total += before * c * 5 // 4 + 13 * c * c // 16 + 2 * before + c
        total += 110 * (17 * c * c // 16 + 3 * c)
        before = c
    total += 2 * 256 + 256 * 10 + 10
    model = tfkd.models.build("resnet1001", num_classes=10)
    assert count_trainable(model) == total
    assert total == pytest.approx(10.2e6, rel=0.015)
    names = {layer.name for layer in model.layers}
    convs = [n for n in names if n.split("_")[-1].startswith("conv")]
    assert len(convs) + 2 == 1001
    shapes = [
        model.get_layer(name).output.shape[1:]
        for name in ("stem", "stage1", "stage2", "stage3", "features")
    ]
    assert shapes == [
        (32, 32, 16),
        (32, 32, 64),
        (16, 16, 128),
        (8, 8, 256),
        (256,),
    ]
    taps = [f"stage{stage}_preactivation" for stage in (1, 2, 3)]
    assert {*taps, "logits"} <= names
    assert model.output_shape == (None, 10)


def test_wrn_16_2_names_its_layers():
    model = tfkd.models.build("wrn-16-2", num_classes=10, width=0.1)
    expected = ["images", "stem", "features", "logits"]
    for stage in (1, 2, 3):
        first, second = (f"stage{stage}_block{block}" for block in (1, 2))
        opening = [f"{first}_norm1", f"{first}_relu1"]
        if stage > 1:  # those that close the stage before
            opening = [f"{first}_conv1_pad", f"{first}_shortcut_pixels"]
        expected += [
            *(*opening, f"{first}_conv1", f"{first}_norm2", f"{first}_relu2"),
            *(f"{first}_conv2", f"{first}_shortcut", f"{first}_sum"),
            *(f"{second}_norm1", f"{second}_relu1", f"{second}_conv1"),
            *(f"{second}_norm2", f"{second}_relu2", f"{second}_conv2"),
            *(f"stage{stage}", f"stage{stage}_preactivation"),
            f"stage{stage}_relu",
        ]
    assert sorted(layer.name for layer in model.layers) == sorted(expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_network_computes_what_the_formula_says(size, float64, randomized):
    model = randomized(
        tfkd.models.build(
            "wrn-16-2", num_classes=3, input_shape=(*size, 2), width=0.1
        )
    )
    images = np.random.default_rng(0).normal(size=(2, *size, 2))
    np.testing.assert_allclose(
        model(images),
        network_reference.wide_resnet(
            images,
            lambda layer: model.get_layer(layer).get_weights(),
            blocks=2,
        ),
        rtol=1e-9,
    )


@pytest.mark.parametrize("name", ["wrn-16-2", "resnet1001"])
def test_images_below_4_pixels_are_refused(name):
    with pytest.raises(ValueError, match=r"smallest that fits is \(4, 4, 3\)"):
        tfkd.models.build(name, num_classes=2, input_shape=(32, 3, 3))
