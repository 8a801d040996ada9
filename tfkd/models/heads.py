"""New classifiers on the features of other networks."""

import difflib

import keras

from tfkd import trace
from tfkd.arguments import check_count
from tfkd.copies import copy_weights
from tfkd.models.blocks import classifier


def with_head(backbone, *, num_classes, at=None):
    """A copy of a network up to its features, with new logits on top.

    The copy begins with the backbone's weights and shares none of them, so
    that the backbone can teach it. Layers keep their names, their precision
    and whether they train. The new layer is "logits"; maps are averaged over
    their positions before, in a new layer "features".

    Args:
        backbone: A built Functional or Sequential Keras model, such as those of
            `tfkd.models.build` and `keras.applications`.
        num_classes: Number of logits, an integer >= 1.
        at: Name of the layer whose output is classified, `[batch, dim]` or a
            map `[batch, height, width, dim]`. None: "features" if the
            backbone has such a layer; else what enters its classifier if it
            ends in a dense layer, that goes; else its output, as of
            `keras.applications` with `include_top=False`.

    Returns:
        A Functional model, the backbone's inputs -> logits
        `[batch, num_classes]`, its last layer called "logits".

    Raises:
        ValueError: If `backbone` is no such model, if it has no layer `at`,
            if that is neither vector nor map, or if `num_classes` is
            invalid.

    Example:
    >>> backbone = build("resnet20", num_classes=100)
    >>> with_head(backbone, num_classes=10).output_shape
    (None, 10)
    >>> backbone = keras.applications.MobileNetV2(include_top=False)
    >>> with_head(backbone, num_classes=10).layers[-2].name
    'features'
    """
    num_classes = check_count(num_classes, "num_classes")
    if not isinstance(backbone, keras.Model) or not getattr(
        backbone, "inputs", None
    ):
        raise ValueError(
            "Invalid value for argument `backbone`. Expected a built "
            "Functional or Sequential Keras model, whose layers are known in "
            f"their order. Received: backbone={backbone!r}"
        )
    names = [layer.name for layer in backbone.layers]
    if at is None and "features" in names:
        at = "features"
    if at is not None and at not in names:
        nearest = difflib.get_close_matches(str(at), names, n=3)
        hint = f" The nearest are {nearest}." if nearest else ""
        raise ValueError(
            "Invalid value for argument `at`. Expected the name of a layer of "
            f"'{backbone.name}'. Received: at={at!r}.{hint}"
        )
    if at is None:
        features = _before_the_classifier(backbone)
    else:
        features = backbone.get_layer(at).output
    if getattr(features, "ndim", None) not in (2, 4):
        raise ValueError(
            "Invalid value for argument `at`. Expected a layer with one "
            "output [batch, dim] or [batch, height, width, dim]. "
            f"Received: at={at!r} of '{backbone.name}', which returns "
            f"{keras.tree.map_structure(lambda x: x.shape, features)}"
        )
    sequential = isinstance(backbone, keras.Sequential)
    inputs = backbone.inputs[0] if sequential else backbone.input
    trunk = keras.Model(inputs, features, name=backbone.name)
    copy = keras.models.clone_model(trunk)
    copy_weights(source=trunk, target=copy)
    features = copy.output
    if features.ndim == 4:
        pool = keras.layers.GlobalAveragePooling2D(name="features")
        features = pool(features)
    outputs = classifier(features, num_classes)
    return keras.Model(copy.input, outputs, name=backbone.name)


def _before_the_classifier(backbone):
    """What enters the last dense layer, or the output if there is none."""
    last = trace.classifier(backbone)
    layer = None if last is None else trace.find_layer(backbone, last)
    if isinstance(layer, keras.layers.Dense) and "/" not in last:
        return layer.input
    return backbone.outputs[0] if len(backbone.outputs) == 1 else None
