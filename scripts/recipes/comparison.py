"""The arithmetic of tables: means, deviations, paired differences."""

import math
from typing import NamedTuple

import numpy as np

# A difference below so many standard errors decides nothing.
_STANDARD_ERRORS = 2
# Of the numbers: what rounding makes of equal ones.
_NONE = 1e-12


class Verdict(NamedTuple):
    """What the seeds say of a claim's pair.

    Attributes:
        difference: Mean over the seeds of higher - lower.
        error: Its standard error; NaN for one seed.
        words: "holds", "does not hold" or "undecided".
    """

    difference: float
    error: float
    words: str


def verdict(higher, lower):
    """Compares two cells, seed by seed.

    Args:
        higher: Numbers of the cell that is said to be higher, a seed each.
        lower: Those of the other, of the same seeds.

    Returns:
        A `Verdict`: undecided if the difference is 0, of one seed, or less
        than twice its standard error.
    """
    differences = np.asarray(higher, float) - np.asarray(lower, float)
    mean = float(differences.mean())
    error = math.nan
    if len(differences) > 1:
        error = float(differences.std(ddof=1) / math.sqrt(len(differences)))
    none = abs(mean) < _NONE * max(np.max(np.abs(higher)), 1)
    if none or not abs(mean) >= _STANDARD_ERRORS * error:
        return Verdict(mean, error, "undecided")
    return Verdict(mean, error, "holds" if mean > 0 else "does not hold")


def mean_and_deviation(values, digits=1):
    """Text "mean ± standard deviation", that of the sample.

    Args:
        values: Numbers; of one the deviation is left out.
        digits: After the point.
    """
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):.{digits}f}"
    return text
