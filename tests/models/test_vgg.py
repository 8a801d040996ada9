"""VGG networks: their layers, their sizes, their numbers of weights."""

import keras
import network_reference
import numpy as np
import pytest

import tfkd.models


def count_trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def names_of(model):
    return [layer.name for layer in model.layers]


def test_vgg4_has_671818_trainable_parameters():
    """Three convolutions of 9 weights per pair of channels, no biases.

    9 (3*64 + 64*128 + 128*512) = 1728 + 73728 + 589824 = 665280 weights,
    2 (64 + 128 + 512) = 1408 scales and offsets of the normalisation,
    512*10 + 10 = 5130 in the dense layer.
    """
    model = tfkd.models.build("vgg4", num_classes=10)
    assert count_trainable(model) == 665280 + 1408 + 5130 == 671818


def test_vgg9_has_9274532_trainable_parameters_for_100_classes():
    """Eight convolutions of 9 weights per pair of channels, no biases.

    9 (3*64 + 64*128 + 128*256 + 256*256 + 256*512 + 3 * 512*512)
    = 1728 + 73728 + 294912 + 589824 + 1179648 + 7077888 = 9217728 weights,
    2 (64 + 128 + 2*256 + 4*512) = 5504 scales and offsets,
    512*100 + 100 = 51300 in the dense layer.
    """
    model = tfkd.models.build("vgg9", num_classes=100)
    assert count_trainable(model) == 9217728 + 5504 + 51300 == 9274532


def test_width_scales_every_convolution_but_not_the_logits():
    """At width 1/4 the channels are 16, 32 and 128; the images are gray.

    9 (16 + 16*32 + 32*128) = 41616 weights, 2 * 176 = 352 scales and
    offsets, 128*10 + 10 = 1290 in the dense layer.
    """
    model = tfkd.models.build(
        "vgg4", num_classes=10, input_shape=(32, 32, 1), width=0.25
    )
    assert count_trainable(model) == 41616 + 352 + 1290


def test_width_rounds_and_leaves_one_channel():
    """0.012 * (64, 128, 512) = 0.768, 1.536, 6.144; 0.001 * 64 = 0.064."""
    model = tfkd.models.build("vgg4", num_classes=10, width=0.012)
    channels = [model.get_layer(f"stage{k}").output.shape[-1] for k in (1, 2)]
    assert [*channels, model.get_layer("features").output.shape[-1]] == [
        1,
        2,
        6,
    ]
    thin = tfkd.models.build("vgg4", num_classes=10, width=0.001)
    assert thin.get_layer("stem").output.shape == (None, 32, 32, 1)


def test_vgg4_names_its_layers():
    model = tfkd.models.build("vgg4", num_classes=10, width=0.05)
    assert names_of(model) == [
        *("images", "stem_conv", "stage1_preactivation", "stem", "stage1"),
        *("stage2_conv1", "stage2_preactivation", "stage2_relu1", "stage2"),
        *("stage3_conv1", "stage3_preactivation", "stage3_relu1", "stage3"),
        *("features", "logits"),
    ]


def test_vgg9_names_its_layers():
    model = tfkd.models.build("vgg9", num_classes=10, width=0.05)
    assert names_of(model) == [
        *("images", "stem_conv", "stage1_preactivation", "stem", "stage1"),
        *("stage2_conv1", "stage2_preactivation", "stage2_relu1", "stage2"),
        *("stage3_conv1", "stage3_norm1", "stage3_relu1"),
        *("stage3_conv2", "stage3_preactivation", "stage3_relu2", "stage3"),
        *("stage4_conv1", "stage4_norm1", "stage4_relu1"),
        *("stage4_conv2", "stage4_preactivation", "stage4_relu2", "stage4"),
        *("stage5_conv1", "stage5_norm1", "stage5_relu1"),
        *("stage5_conv2", "stage5_preactivation", "stage5_relu2", "stage5"),
        *("features", "logits"),
    ]


def test_pools_halve_the_maps():
    model = tfkd.models.build(
        "vgg9", num_classes=10, input_shape=(64, 34, 3), width=0.125
    )
    shapes = {
        name: model.get_layer(name).output.shape[1:]
        for name in ("stem", "stage1", "stage2", "stage3", "stage4", "stage5")
    }
    assert shapes == {
        "stem": (64, 34, 8),
        "stage1": (32, 17, 8),
        "stage2": (16, 8, 16),
        "stage3": (8, 4, 32),
        "stage4": (4, 2, 64),
        "stage5": (2, 1, 64),
    }


def test_block_is_convolution_normalisation_and_relu():
    """The stem by hand at one channel: ReLU of the normalised 3x3 sum.

    Nine weights of 1 sum the 3x3 neighbourhood of a single pixel of 2, so
    the convolution is 2 around it. Moving mean 1, variance 1 - 1e-5, scale
    1, offset 0.5 make of it (2 - 1) / 1 + 0.5 = 1.5, and of the zeros
    elsewhere ReLU(-1 + 0.5) = 0.
    """
    model = tfkd.models.build(
        "vgg4", num_classes=2, input_shape=(8, 8, 1), width=1 / 64
    )
    model.get_layer("stem_conv").set_weights([np.ones((3, 3, 1, 1))])
    model.get_layer("stage1_preactivation").set_weights(
        [np.ones(1), np.full(1, 0.5), np.ones(1), np.full(1, 1 - 1e-5)]
    )
    image = np.zeros((1, 8, 8, 1))
    image[0, 0, 4] = 2.0
    expected = np.zeros((1, 8, 8, 1))
    expected[0, 0:2, 3:6] = 1.5
    stem = keras.Model(model.input, model.get_layer("stem").output)
    np.testing.assert_allclose(stem(image), expected, rtol=1e-6)


def test_kernels_are_he_normal():
    """Standard deviation sqrt(2 / (9 * 128)) over 9 * 128 * 512 draws."""
    keras.utils.set_random_seed(0)
    model = tfkd.models.build("vgg4", num_classes=10)
    kernel = model.get_layer("stage3_conv1").kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.01)


def test_vgg8_has_3963556_trainable_parameters_for_100_classes():
    """Five convolutions of 9 weights per pair of channels, no biases.

    9 (3*64 + 64*128 + 128*256 + 256*512 + 512*512) = 3909312 weights,
    2 (64 + 128 + 256 + 2*512) = 2944 scales and offsets,
    512*100 + 100 = 51300 in the dense layer. The paper's 3.97 million are
    these and 1472 biases, which the normalisation would subtract again.
    """
    model = tfkd.models.build("vgg8", num_classes=100)
    assert count_trainable(model) == 3909312 + 2944 + 51300 == 3963556


def test_vgg13_has_9459236_trainable_parameters_for_100_classes():
    """Ten convolutions of 9 weights per pair of channels, no biases.

    9 (3*64 + 64^2 + 64*128 + 128^2 + 128*256 + 256^2 + 256*512 + 3 * 512^2)
    = 9402048 weights, 2 * 2 (64 + 128 + 256 + 2*512) = 5888 scales and
    offsets, 51300 in the dense layer.
    """
    model = tfkd.models.build("vgg13", num_classes=100)
    assert count_trainable(model) == 9402048 + 5888 + 51300 == 9459236


def test_vgg13_names_its_layers():
    model = tfkd.models.build("vgg13", num_classes=10, width=0.05)
    stages = []
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        stages += [f"{stage}_pool"] if stage != "stage4" else []
        stages += [f"{stage}_{layer}1" for layer in ("conv", "norm", "relu")]
        stages += [f"{stage}_conv2", f"{stage}_preactivation", stage]
    assert names_of(model) == [
        *("images", "stem_conv1", "stem_norm1", "stem_relu1"),
        *("stem_conv2", "stem_norm2", "stem"),
        *(*stages, "features", "logits"),
    ]


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (32, [32, 16, 8, 4, 4]),
        (63, [63, 31, 15, 7, 7]),
        (64, [64, 32, 16, 8, 4]),
    ],
)
def test_the_fourth_pool_of_vgg8_is_for_64_pixels_and_more(size, sizes):
    model = tfkd.models.build(
        "vgg8", num_classes=2, input_shape=(size, size, 1), width=0.02
    )
    taps = ("stem", "stage1", "stage2", "stage3", "stage4")
    assert [model.get_layer(tap).output.shape[1] for tap in taps] == sizes


@pytest.mark.parametrize(("name", "convs"), [("vgg8", 1), ("vgg13", 2)])
def test_benchmark_network_computes_what_the_formula_says(
    name, convs, float64, randomized
):
    model = randomized(
        tfkd.models.build(
            name, num_classes=3, input_shape=(9, 8, 2), width=0.05
        )
    )
    images = np.random.default_rng(0).normal(size=(2, 9, 8, 2))
    np.testing.assert_allclose(
        model(images),
        network_reference.benchmark_vgg(
            images,
            lambda layer: model.get_layer(layer).get_weights(),
            convs=convs,
            pools=3,
        ),
        rtol=1e-9,
    )


def test_kernels_of_vgg8_are_he_normal_of_the_fan_out():
    """Standard deviation sqrt(2 / (9 * 512)) over 9 * 256 * 512 draws."""
    model = tfkd.models.build("vgg8", num_classes=10)
    kernel = model.get_layer("stage3_conv1").kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("vgg4", 8), ("vgg9", 32), ("vgg8", 8), ("vgg13", 8)],
)
def test_smallest_images_fit_and_smaller_ones_are_refused(name, smallest):
    """Three pools need 2^3 = 8 pixels, five need 2^5 = 32."""
    fits = tfkd.models.build(
        name, num_classes=2, input_shape=(smallest, smallest, 1), width=0.02
    )
    last = {"vgg4": "stage3", "vgg9": "stage5"}.get(name, "stage4")
    assert fits.get_layer(last).output.shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=rf"\({smallest}, {smallest}, 1\)"):
        tfkd.models.build(
            name, num_classes=2, input_shape=(64, smallest - 1, 1)
        )
