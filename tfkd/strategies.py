"""What `tf.distribute` asks of a trainer, and what Keras leaves undone."""

from typing import NamedTuple

import keras
import tensorflow as tf


def check_compile(strategy, optimizer, *, steps_per_execution, jit_compile):
    """Refuses what Keras cannot do under a strategy.

    Args:
        strategy: A `tf.distribute.Strategy`.
        optimizer: As of `keras.Model.compile`.
        steps_per_execution: Likewise.
        jit_compile: Likewise.

    Raises:
        ValueError: With what to do instead.
    """
    if keras.distribution.distribution() is not None:
        raise ValueError(
            "keras.distribution does nothing on the TensorFlow backend. "
            "Received: a distribution of type "
            f"{type(keras.distribution.distribution()).__name__}. Call "
            "keras.distribution.set_distribution(None), and make networks "
            "and trainer in the scope of a tf.distribute.MirroredStrategy."
        )
    kind = type(strategy).__name__
    if isinstance(optimizer, keras.optimizers.Optimizer) and not all(
        _is_of(strategy, variable) for variable in optimizer.variables
    ):
        raise ValueError(
            "The optimizer was made in the scope of another "
            "tf.distribute.Strategy than the trainer, or in none. Make it in "
            "that in which the trainer is made."
        )
    mirrored = (
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
    )
    optimizer = keras.optimizers.get(optimizer)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    steps = getattr(inner, "gradient_accumulation_steps", None)
    if steps and isinstance(strategy, mirrored):
        raise ValueError(
            f"Keras cannot accumulate gradients under a {kind}. Received: "
            f"gradient_accumulation_steps={steps}. Leave it out; for more "
            "examples a step take more replicas, or train on one device "
            "outside strategy.scope()."
        )
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return
    if steps_per_execution not in (None, 1):
        raise ValueError(
            f"Keras cannot run several steps at once on {replicas} replicas. "
            f"Received: steps_per_execution={steps_per_execution}. Leave it "
            "out, or take larger batches."
        )
    if jit_compile is True:
        raise ValueError(
            f"Keras cannot compile with XLA for the {replicas} replicas of a "
            f'{kind}. Compile with jit_compile=False or "auto", or train on '
            "one device outside strategy.scope()."
        )


def require_in_scope(strategy, model):
    """Refuses a student of another strategy than the trainer's.

    Args:
        strategy: The `tf.distribute.Strategy` of the trainer.
        model: The student, a built Keras model.

    Raises:
        ValueError: With where to make it.
    """
    if all(_is_of(strategy, variable) for variable in model.variables):
        return
    raise ValueError(
        f"Student '{model.name}' was made in the scope of another "
        "tf.distribute.Strategy than its trainer, or in none. Make or load "
        "it, make the trainer and compile in one `with strategy.scope():`."
    )


def _is_of(strategy, variable):
    return strategy.extended.variable_created_in_scope(variable.value)


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


def is_chief(strategy):
    """Whether this process is the one of its cluster that writes files.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        A bool; True where there is no other process.
    """
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_type == "worker" and resolver.task_id == 0


def of_all_workers(strategy, number):
    """What each worker calls this function with, in their order.

    All must call it, for each waits for the others.

    Args:
        strategy: A `tf.distribute.Strategy`.
        number: An integer.

    Returns:
        A list of integers; of this one alone where there is no other worker.
    """
    if not is_multi_worker(strategy):
        return [number]
    numbers = strategy.run(lambda: tf.constant([number], tf.int64))
    return strategy.gather(numbers, axis=0).numpy().tolist()


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

    def next_step(iterator):
        return one_step(iterator.get_next())

    if not trainer.run_eagerly:
        # The iterator knows that batches differ in size, its batches do not.
        next_step = tf.function(next_step, reduce_retracing=True)

    def function(iterator):
        if isinstance(iterator, tf.distribute.DistributedIterator):
            return next_step(iterator)
        return one_step(next(iterator))

    return function


class Part(NamedTuple):
    """What a replica has of a batch.

    Attributes:
        mean: How many examples a replica has on average, scalar, of Keras'
            floating type or float32.
        share: This one's number, in units of the mean; None where there is
            one replica.
    """

    mean: tf.Tensor
    share: tf.Tensor | None

    def shared(self, value, loss):
        """A replica's value, so that those of all add up to the batch's.

        Keras divides means by the number of replicas, as if the parts were
        equal.

        Args:
            value: Scalar, a mean over the examples of this replica, divided
                by the number of replicas.
            loss: What it is a value of; a loss, some losses or anything.
                Those that add examples up are so already.

        Returns:
            Scalar.
        """
        sums = any(
            getattr(one, "reduction", None) == "sum"
            for one in keras.tree.flatten(loss)
        )
        if self.share is None or sums:
            return value
        return value * tf.cast(self.share, value.dtype)


def part_of_batch(inputs):
    """The `Part` that a replica has.

    Args:
        inputs: This replica's examples.

    Returns:
        A `Part`.
    """
    dtype = keras.backend.result_type(keras.config.floatx(), "float32")
    examples = tf.cast(_examples(inputs), dtype)
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return Part(examples, None)
    mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, examples)
    return Part(mean, examples / mean)


def agree_on_overflow(gradients):
    """The gradients of a replica, not finite if those of another are not.

    `keras.optimizers.LossScaleOptimizer` asks the first replica alone whether
    a step is to be left out.

    Args:
        gradients: List of tensors, `tf.IndexedSlices` or None.

    Returns:
        A list of the same.
    """
    context = tf.distribute.get_replica_context()
    given = [i for i, each in enumerate(gradients) if each is not None]
    if context is None or context.num_replicas_in_sync == 1 or not given:
        return gradients

    def values(gradient):
        return getattr(gradient, "values", gradient)

    finite = tf.reduce_all(
        [tf.reduce_all(tf.math.is_finite(values(gradients[i]))) for i in given]
    )
    added = tf.where(finite, 0.0, float("nan"))
    added = context.all_reduce(tf.distribute.ReduceOp.SUM, added)
    first = gradients[given[0]]
    changed = values(first) + tf.cast(added, first.dtype)
    if isinstance(first, tf.IndexedSlices):
        changed = tf.IndexedSlices(changed, first.indices, first.dense_shape)
    return [*gradients[: given[0]], changed, *gradients[given[0] + 1 :]]


def require_examples(inputs):
    """The inputs, which fail where one of several replicas has none.

    TensorFlow's convolutions end the process on an empty batch.

    Args:
        inputs: This replica's part of the batch.

    Returns:
        `inputs`.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return inputs
    check = tf.debugging.Assert(
        _examples(inputs) > 0,
        [
            "The last batch has fewer examples than there are replicas: use "
            "dataset.batch(n, drop_remainder=True), or another n."
        ],
    )
    with tf.control_dependencies([check]):
        return keras.tree.map_structure(tf.identity, inputs)


def _examples(inputs):
    return tf.shape(keras.tree.flatten(inputs)[0])[0]
