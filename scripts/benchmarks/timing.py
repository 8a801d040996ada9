"""Times several steps side by side."""

import time

import numpy as np
import tensorflow as tf

THREADS = 2


def limit_threads():
    """Lets TensorFlow use `THREADS` threads; before its first operation."""
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)


def gradient_step(loss, teacher, student, jit_compile=False):
    """A function that computes a loss and its gradient, traced once.

    Args:
        loss: Function of the teacher's and the student's features.
        teacher: Features, an array `[batch, width]`.
        student: Likewise; the gradient is with respect to them.
        jit_compile: Whether XLA compiles it.

    Returns:
        A function without arguments that returns the value and the gradient
        as arrays.
    """

    @tf.function(autograph=False, jit_compile=jit_compile)
    def evaluate(teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss(teacher, student)
        return value, tape.gradient(value, student)

    arguments = tf.constant(teacher), tf.constant(student)
    return lambda: [result.numpy() for result in evaluate(*arguments)]


def times(steps, rounds):
    """Times steps in turn, so that a noisy machine slows all of them alike.

    Args:
        steps: Dict, name -> function without arguments that returns when its
            step is over.
        rounds: How often each is timed.

    Returns:
        Dict, name -> `[rounds]`, seconds.
    """
    # Building a network makes TensorFlow prepare the earlier ones anew.
    for step in steps.values():
        step()
    result = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            result[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in result.items()}
