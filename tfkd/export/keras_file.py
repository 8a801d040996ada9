"""A student as a .keras file, without what trained it."""

import contextlib

import keras


def write_keras(student, path):
    """Writes architecture and weights, of nested networks too.

    `student.save` would write the optimizers along: its argument
    `include_optimizer` is for the old format alone.

    Args:
        student: A built Keras model. It stays compiled if it is.
        path: File to write; ends in ".keras".
    """
    with contextlib.ExitStack() as stack:
        for layer in student._flatten_layers():
            if isinstance(layer, keras.Model):
                stack.enter_context(_not_compiled(layer))
        student.save(path)


@contextlib.contextmanager
def _not_compiled(model):
    """Hides a model's optimizer, and how it was compiled."""
    state = vars(model)
    hidden = {
        key: state[key] for key in ("optimizer", "compiled") if key in state
    }
    state.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        state.update(hidden)
