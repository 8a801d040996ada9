"""One classification of several views of an image."""

import keras
import tensorflow as tf


def average_views(network):
    """A network that classifies several views of each image as one.

    Formula: `log(1/v sum_k softmax(network(x_k)))`, the mean of the
    probabilities of v views, as logits: their softmax is that mean.

    Views go through the network one after the other, in inference mode, so
    that memory is that of one.

    Args:
        network: A built Functional or Sequential Keras model with one input
            and logits `[batch, classes]` out. It is neither copied nor
            changed.

    Returns:
        A `keras.Model` of `[batch, views, ...]`, such as the test images
        of `tfkd.data.load(..., ten_crop=True)`; float32 `[batch, classes]`.

    Raises:
        ValueError: If `network` is no such model.

    Example:

    ```python
    birds = tfkd.data.load("caltech_birds2011", batch_size=8, ten_crop=True)
    logits = tfkd.models.average_views(network).predict(birds.test)
    ```

    Reference: Krizhevsky, Sutskever & Hinton 2012, section 4.1.
    """
    inputs = getattr(network, "inputs", None) or ()
    outputs = getattr(network, "outputs", None) or ()
    if (
        not isinstance(network, keras.Model)
        or len(inputs) != 1
        or [len(output.shape) for output in outputs] != [2]
    ):
        raise ValueError(
            "Invalid value for argument `network`. Expected a built "
            "Functional or Sequential Keras model with one input and one "
            f"output (batch, classes). Received: network={network!r}"
        )
    views = keras.Input((None, *inputs[0].shape[1:]), name="views")
    logits = _AverageViews(network, name="average_views")(views)
    return keras.Model(views, logits, name=f"{network.name}_average_views")


class _AverageViews(keras.layers.Layer):
    """The logarithm of the mean of the views' probabilities.

    Args:
        network: As `average_views` takes it.
    """

    def __init__(self, network, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.network = network

    def call(self, views):
        def log_probabilities(view):
            logits = tf.cast(self.network(view, training=False), tf.float32)
            return tf.nn.log_softmax(logits)

        by_view = tf.map_fn(
            log_probabilities,
            tf.experimental.numpy.moveaxis(views, 1, 0),
            fn_output_signature=tf.float32,
        )  # [views, batch, classes]
        number = tf.cast(tf.shape(by_view)[0], tf.float32)
        return tf.reduce_logsumexp(by_view, axis=0) - tf.math.log(number)

    def compute_output_shape(self, views_shape):
        return views_shape[0], self.network.outputs[0].shape[-1]
