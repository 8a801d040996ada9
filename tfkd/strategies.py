"""What `tf.distribute` asks of a trainer, and what Keras leaves undone."""

import keras
import tensorflow as tf


def is_multi_worker(strategy):
    """Whether a strategy trains by several processes, each with its data.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        A bool; False for a cluster of one.
    """
    kind = tf.distribute.MultiWorkerMirroredStrategy
    return (
        isinstance(strategy, kind) and strategy.extended._in_multi_worker_mode()
    )


def batch_specs(epoch_iterator):
    """What the batches are like that Keras goes through, without reading any.

    Args:
        epoch_iterator: Of Keras' trainer.

    Returns:
        Structure of `tf.TensorSpec`, as of one replica.
    """

    def first(spec):
        # Of a dataset that was distributed before.
        return getattr(spec, "_value_specs", [spec])[0]

    dataset = epoch_iterator.data_adapter.get_tf_dataset()
    return keras.tree.map_structure(first, dataset.element_spec)


def multi_worker_function(trainer, step):
    """What Keras' `make_train_function` makes, for several workers.

    Keras 3.15 takes the mean of the workers' logs over an axis that numbers
    do not have.

    Args:
        trainer: A `keras.Model`, compiled.
        step: Its `train_step` or `test_step`.

    Returns:
        Function of an iterator over distributed batches that returns logs.
    """
    strategy = trainer.distribute_strategy

    def one_step(data):
        logs = strategy.run(step, args=(data,))
        return keras.tree.map_structure(
            lambda value: strategy.reduce("MEAN", value, axis=None), logs
        )

    if not trainer.run_eagerly:
        one_step = tf.function(one_step, reduce_retracing=True)
    return lambda iterator: one_step(next(iterator))
