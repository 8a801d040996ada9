"""New classifiers on the features of other networks."""

import difflib

import keras

from tfkd.arguments import check_count
from tfkd.models.blocks import classifier


def with_head(backbone, *, num_classes, at="features"):
    """A copy of a network up to its features, with new logits on top.

    The copy begins with the backbone's weights and shares none of them, so
    that the backbone can teach it. Layers keep their names, their precision
    and whether they train.

    Args:
        backbone: A built Functional or Sequential Keras model, such as those of
            `tfkd.models.build` and `keras.applications`.
        num_classes: Number of logits, an integer >= 1.
        at: Name of the layer whose output, `[batch, dim]`, is classified;
            "avg_pool" in the ResNets of `keras.applications`.

    Returns:
        A Functional model, the backbone's inputs -> logits
        `[batch, num_classes]`, its last layer called "logits".

    Raises:
        ValueError: If `backbone` is no such model, if it has no layer `at`,
            if that is no vector per example, or if `num_classes` is invalid.

    Example:
    >>> backbone = build("resnet20", num_classes=100)
    >>> with_head(backbone, num_classes=10).output_shape
    (None, 10)
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
    if at not in names:
        nearest = difflib.get_close_matches(str(at), names, n=3)
        hint = f" The nearest are {nearest}." if nearest else ""
        raise ValueError(
            "Invalid value for argument `at`. Expected the name of a layer of "
            f"'{backbone.name}'. Received: at={at!r}.{hint}"
        )
    features = backbone.get_layer(at).output
    if getattr(features, "ndim", None) != 2:
        raise ValueError(
            "Invalid value for argument `at`. Expected a layer with one "
            "output [batch, dim], such as a GlobalAveragePooling2D. "
            f"Received: at={at!r} of '{backbone.name}', which returns "
            f"{keras.tree.map_structure(lambda x: x.shape, features)}"
        )
    sequential = isinstance(backbone, keras.Sequential)
    inputs = backbone.inputs[0] if sequential else backbone.input
    trunk = keras.Model(inputs, features, name=backbone.name)
    copy = keras.models.clone_model(trunk)
    copy.set_weights(trunk.get_weights())
    outputs = classifier(copy.output, num_classes)
    return keras.Model(copy.input, outputs, name=backbone.name)
