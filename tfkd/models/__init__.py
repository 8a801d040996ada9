"""Networks to teach and to be taught: flat Functional models, logits out.

Layers to compare networks at, the same in all of them:

- "stem": the first convolution, in most after normalisation and ReLU.
- "stage1", "stage2" and so on: the end of each stage.
- "stage1_preactivation" and so on: what enters the last ReLU of the stage,
  after all sums and normalisations. That ReLU is the layer "stage1" itself,
  but for vgg4 and vgg9, where a pool follows it, and for the pre-activation
  networks (wrn-*, resnet1001), where "stage1" is the sum before its
  normalisation.
- "features": the pooled vector before the classifier.
- "logits": the classifier, without softmax.

All layers are Keras' own, so that a saved network loads without tfkd. Those
with max pools (vgg*, resnet18, resnet34) have only an approximate second
derivative under XLA.
"""

import difflib

import keras

from tfkd.arguments import check_count, check_positive
from tfkd.models import cifar_resnet, resnet, shufflenet_v2, vgg, wide_resnet
from tfkd.models.heads import with_head
from tfkd.models.views import average_views

__all__ = ["NAMES", "average_views", "build", "with_head"]

# A family joins with one line: its names, and the function that builds them.
_BUILDERS = {
    **dict.fromkeys(vgg.NAMES, vgg.vgg),
    **dict.fromkeys(cifar_resnet.NAMES, cifar_resnet.cifar_resnet),
    **dict.fromkeys(wide_resnet.NAMES, wide_resnet.wide_resnet),
    **dict.fromkeys(resnet.NAMES, resnet.resnet),
    **dict.fromkeys(shufflenet_v2.NAMES, shufflenet_v2.shufflenet_v2),
}

NAMES = tuple(_BUILDERS)


def build(
    name,
    *,
    num_classes,
    input_shape=(32, 32, 3),
    width=1.0,
    synchronized=False,
):
    """Builds an untrained network with random weights.

    Every network maps images `[batch, height, width, channels]` to logits
    `[batch, num_classes]`, which are float32 or wider under any precision
    policy. The layers to compare networks at are "stem", "stage1", "stage2"
    and so on, their "stage1_preactivation", "features" (the pooled vector
    before the classifier) and "logits".

    Args:
        name: One of `tfkd.models.NAMES`; it also names the model.
        num_classes: Number of logits. >= 1.
        input_shape: `(height, width, channels)` of one image, in pixels.
        width: Factor on the channels of every layer but the logits, rounded,
            and at least one channel (shufflenet-v2: of each half). > 0.
        synchronized: Whether batch normalisation takes its statistics over
            the batches of all replicas of a `tf.distribute.Strategy`, so
            that replicas change nothing. Else each takes those of its part,
            and keeps moving statistics of its own.

    Returns:
        A flat Functional `keras.Model`.

    Raises:
        ValueError: If `name` is unknown, `num_classes` or `width` out of
            range, `synchronized` no bool, or `input_shape` not that of an
            image or too small for the network.

    Example:
    >>> model = build("vgg4", num_classes=10, width=0.25)
    >>> model.output_shape
    (None, 10)
    """
    if not isinstance(name, str) or name not in _BUILDERS:
        nearest = difflib.get_close_matches(
            name if isinstance(name, str) else "", NAMES, n=1
        )
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            "Invalid value for argument `name`. "
            f"Expected one of {NAMES}. Received: name={name!r}.{hint}"
        )
    num_classes = check_count(num_classes, "num_classes")
    width = check_positive(width, "width")
    if not isinstance(synchronized, bool):
        raise ValueError(
            "Invalid value for argument `synchronized`. Expected True or "
            f"False. Received: synchronized={synchronized!r}"
        )
    network = _BUILDERS[name](
        name,
        num_classes=num_classes,
        input_shape=_image_shape(input_shape),
        width=width,
    )
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = synchronized
    return network


def _image_shape(input_shape):
    """`input_shape` as three ints, or an error."""
    try:
        height, width, channels = (
            check_count(size, "input_shape") for size in input_shape
        )
    except (TypeError, ValueError):
        raise ValueError(
            "Invalid value for argument `input_shape`. "
            "Expected (height, width, channels), three integers >= 1. "
            f"Received: input_shape={input_shape!r}"
        ) from None
    return height, width, channels
