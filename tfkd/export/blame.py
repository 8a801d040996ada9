"""Which layer it is that a format does not know."""

import re

from tfkd.trace import layer_scopes

_FUSED = re.compile(r'fused\["(\w+):", "([^"@]+)')


class UnsupportedError(Exception):
    """Operations that a format has no counterpart of.

    Args:
        operations: List of (type, name) of each.
    """

    def __init__(self, operations):
        super().__init__(f"unsupported operations: {operations}")
        self.operations = operations


def explain(student, name, convert, error):
    """What to raise after a student could not be converted.

    Converts it once more, with operations named after their layers.

    Args:
        student: A Keras model.
        name: The format's name.
        convert: Function without arguments that converts it.
        error: What was raised.

    Returns:
        A `ValueError` that names the layers at fault, or `error` itself where
        no layer is.
    """
    with layer_scopes(student) as paths:
        try:
            convert()
        except Exception as again:
            operations = _operations(again)
        else:
            return error
    found = {}
    for kind, operation in operations:
        scopes = re.findall(r"tfkd_layer\d+", operation)
        place = paths[scopes[-1]] if scopes else student.name
        found.setdefault(place, dict.fromkeys([kind]))[kind] = None
    if not found:
        return error
    listed = "; ".join(
        f"'{place}' ({', '.join(kinds)})" for place, kinds in found.items()
    )
    return ValueError(
        f"Student '{student.name}' cannot be converted to {name}, which has "
        f"no counterpart of what these layers compute: {listed}. Build the "
        f"student without them, or export it without {name}."
    )


def _operations(error):
    """List of (type, name) of the operations that an error speaks of."""
    if isinstance(error, UnsupportedError):
        return error.operations
    # As TensorFlow's converter tells where in the graph it failed.
    return [
        pair
        for pair in dict.fromkeys(_FUSED.findall(str(error)))
        if pair[0] not in ("StatefulPartitionedCall", "PartitionedCall")
    ]
