"""Runs on several devices or machines: --strategy."""

import contextlib
import os
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

KINDS = ("none", "mirrored", "multiworker")


def add_argument(parser):
    """Adds --strategy.

    Args:
        parser: A `common.Parser`.
    """
    parser.add_argument(
        "--strategy",
        choices=KINDS,
        default="none",
        help="how students are trained: on one device; on all GPUs of this "
        "machine; or by several processes that TF_CONFIG in the environment "
        "names, each started with the same options. The batch size is that "
        "of all together",
    )


def begin(parser, options):
    """The strategy of --strategy, before any operation of TensorFlow.

    Args:
        parser: A `common.Parser`.
        options: An `argparse.Namespace`.

    Returns:
        A `tf.distribute.Strategy`; that of one device for "none".

    Raises:
        SystemExit: With code 2 if it cannot be had.
    """
    if options.strategy == "none":
        return tf.distribute.get_strategy()
    if options.strategy == "mirrored":
        return tf.distribute.MirroredStrategy()
    if "TF_CONFIG" not in os.environ:
        parser.error(
            "argument --strategy: multiworker needs TF_CONFIG in the "
            "environment, which says where all workers are and which this is"
        )
    if not options.output:
        parser.error("argument --strategy: multiworker needs --output")
    with parser.checking("--strategy"):
        return tf.distribute.MultiWorkerMirroredStrategy()


@contextlib.contextmanager
def nothing_kept():
    """A folder for what a process writes that is not the chief."""
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def require_trained(parser, strategy, file):
    """Ends the script if several processes would train one teacher."""
    if strategy.cluster_resolver is not None and not file.exists():
        parser.error(
            f"argument --teacher: there is no '{file}' yet, and workers do "
            "not train it together. Train it first: train.py, or distill.py "
            "without --strategy"
        )


def sharded(dataset):
    """The dataset, whose batches workers share instead of its files.

    Args:
        dataset: A `tf.data.Dataset`.

    Returns:
        A `tf.data.Dataset`.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options)


def predict(model, dataset):
    """Outputs of a model; of a distributed one each worker computes all.

    Replicas would fail where the last batch leaves one without images.

    Args:
        model: A Keras model.
        dataset: A `tf.data.Dataset` of pairs `(x, y)`.

    Returns:
        Array `[images, ...]`.
    """
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return model.predict(dataset, verbose=0)
    run = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    return np.concatenate([run(x).numpy() for x, _ in dataset])


def on_one_device(network):
    """A copy of a network that no strategy knows; or itself, if it is so.

    Args:
        network: A Keras model.

    Returns:
        A Keras model.
    """
    if network.distribute_strategy is tf.distribute.get_strategy():
        return network
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    for layer in copy.layers:
        if getattr(layer, "synchronized", False):
            layer.synchronized = False
    return copy
