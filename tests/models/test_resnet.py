"""ResNet-18 and ResNet-34."""

import network_reference
import numpy as np
import pytest

import tfkd.models


def count_trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("resnet18", 1000, 11689512),
        ("resnet34", 1000, 21797672),
        ("resnet18-cifar", 10, 11173962),
        ("resnet34-cifar", 10, 21282122),
    ],
)
def test_trainable_parameters(name, classes, expected):
    """The paper counts 11.17 and 21.28 million with ten classes.

    By hand for resnet18: stem 49*3*64 + 2*64 = 9536; stage 1 four times
    9*64*64 + 2*64, 147968; a later stage of c channels 9 (c/2) c + 3*9 c c +
    c/2 c + 5*2c: 525568, 2099712, 8393728; dense 512*1000 + 1000 = 513000.
    The stem of resnet18-cifar has 27*64 + 2*64 = 1856.
    """
    stages = 147968 + 525568 + 2099712 + 8393728
    assert 9536 + stages + 513000 == 11689512
    assert 1856 + stages + 5130 == 11173962
    model = tfkd.models.build(
        name, num_classes=classes, input_shape=(32, 32, 3)
    )
    assert count_trainable(model) == expected


@pytest.mark.parametrize(
    ("name", "input_shape", "sizes"),
    [
        ("resnet18", (224, 224, 3), [112, 56, 28, 14, 7]),
        ("resnet34", (65, 65, 3), [33, 17, 9, 5, 3]),
        ("resnet18-cifar", (32, 32, 3), [32, 32, 16, 8, 4]),
        ("resnet34-cifar", (28, 28, 1), [28, 28, 14, 7, 4]),
    ],
)
def test_sizes_of_the_maps(name, input_shape, sizes):
    model = tfkd.models.build(
        name, num_classes=2, input_shape=input_shape, width=1 / 64
    )
    taps = ("stem", "stage1", "stage2", "stage3", "stage4")
    shapes = [model.get_layer(tap).output.shape for tap in taps]
    assert [shape[1] for shape in shapes] == sizes
    assert [shape[-1] for shape in shapes] == [1, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("name", "blocks", "size"),
    [
        ("resnet18", (2, 2, 2, 2), (32, 32)),
        ("resnet18", (2, 2, 2, 2), (33, 35)),
        ("resnet34-cifar", (3, 4, 6, 3), (8, 9)),
    ],
)
def test_network_computes_what_the_formula_says(
    name, blocks, size, float64, randomized
):
    model = randomized(
        tfkd.models.build(
            name, num_classes=3, input_shape=(*size, 2), width=0.05
        )
    )
    images = np.random.default_rng(0).normal(size=(2, *size, 2))
    np.testing.assert_allclose(
        model(images),
        network_reference.basic_resnet(
            images,
            lambda layer: model.get_layer(layer).get_weights(),
            blocks=blocks,
            strides=[1, 2, 2, 2],
            large_stem=name == "resnet18",
        ),
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    ("name", "smallest"), [("resnet18", 32), ("resnet34-cifar", 8)]
)
def test_images_too_small_to_be_halved_are_refused(name, smallest):
    fits = tfkd.models.build(
        name, num_classes=2, input_shape=(smallest, smallest, 1), width=0.02
    )
    assert fits.get_layer("stage4").output.shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=f"height and width >= {smallest}, "):
        tfkd.models.build(
            name, num_classes=2, input_shape=(64, smallest - 1, 1)
        )
