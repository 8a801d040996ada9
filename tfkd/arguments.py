"""Checks of arguments that many places share."""

import math
import numbers


def check_positive(value, argument):
    """`value` as a float, if it is a finite number > 0.

    Args:
        value: Anything.
        argument: The argument's name, for the error.

    Returns:
        A float.

    Raises:
        ValueError: If it is anything else.
    """
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected a finite "
            f"number > 0. Received: {argument}={value!r}"
        )
    return float(value)


def check_non_negative(value, argument):
    """`value` as a float, if it is a finite number >= 0.

    Args:
        value: Anything.
        argument: The argument's name, for the error.

    Returns:
        A float.

    Raises:
        ValueError: If it is anything else.
    """
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
    ):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected a finite "
            f"number >= 0. Received: {argument}={value!r}"
        )
    return float(value)


def check_count(value, argument):
    """`value` as an int, if it is an integer >= 1.

    Args:
        value: Anything.
        argument: The argument's name, for the error.

    Returns:
        An int.

    Raises:
        ValueError: If it is anything else.
    """
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or value < 1
    ):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected an integer "
            f">= 1. Received: {argument}={value!r}"
        )
    return int(value)


def check_choice(value, choices, argument):
    """`value`, if it is one of the choices.

    Args:
        value: Anything.
        choices: Tuple of the values to choose from.
        argument: The argument's name, for the error.

    Returns:
        The value.

    Raises:
        ValueError: If it is another.
    """
    if value not in choices:
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected one of "
            f"{choices}. Received: {argument}={value!r}"
        )
    return value


def check_names(value, argument):
    """`value` as a list, if it is a list or tuple of at least one string.

    Args:
        value: Anything.
        argument: The argument's name, for the error.

    Returns:
        A list of strings.

    Raises:
        ValueError: If it is anything else; a string is no list of letters.
    """
    names = list(value) if isinstance(value, list | tuple) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected a list of at "
            f"least one name. Received: {argument}={value!r}"
        )
    return names


def check_seed(value):
    """`value` as an int, if it is an integer in [0, 2**32).

    Args:
        value: Anything.

    Returns:
        An int.

    Raises:
        ValueError: If it is anything else.
    """
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or not 0 <= value < 2**32
    ):
        raise ValueError(
            "Invalid value for argument `seed`. Expected an integer in "
            f"[0, 2**32). Received: seed={value!r}"
        )
    return int(value)
