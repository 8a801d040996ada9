"""The Kullback-Leibler divergence between the Gaussians of two batches."""

import keras

from tfkd.arguments import check_choice, check_positive
from tfkd.losses.distribution import DistributionLoss, flatten
from tfkd.transport import gaussian_kl
from tfkd.transport.moments import check_covariance

# The student's signal is x.
_DIRECTIONS = {"student||teacher": "x||y", "teacher||student": "y||x"}


@keras.saving.register_keras_serializable("tfkd")
class GaussianKL(DistributionLoss):
    """Kullback-Leibler divergence between two batches taken as Gaussians.

    Formula: `1/2 [ tr(S_T^-1 S_S) + dm^T S_T^-1 dm - d + log(|S_T| / |S_S|) ]`
    divided by d, for KL(student || teacher), with dm the difference of the
    means of the flattened signals and S their covariances plus
    `ridge tr(covariance of the teacher) / d` on the diagonal.

    A batch smaller than the number of features will do. See
    `tfkd.transport.gaussian_kl`.

    Args:
        covariance: "full" or "diagonal".
        direction: "student||teacher" or "teacher||student".
        ridge: In units of the teacher's mean variance. > 0.
        per_dimension: Whether to divide by d, without which the value grows
            with `d / ridge`.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If an argument is invalid.

    Example: variances 1 and 9, both with a ridge of 0.1, and means 0 and 10:
    `((9.1 + 100) / 1.1 - 1 + log(1.1 / 9.1)) / 2`.

    >>> round(float(GaussianKL()([[-1.0], [1.0]], [[7.0], [13.0]])), 3)
    48.034

    Reference: Fernandes Montesuma 2025, equation 6.
    """

    def __init__(
        self,
        covariance="full",
        *,
        direction="student||teacher",
        ridge=0.1,
        per_dimension=True,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        check_covariance(covariance)
        self.covariance = covariance
        self.direction = check_choice(
            direction, tuple(_DIRECTIONS), "direction"
        )
        self.ridge = check_positive(ridge, "ridge")
        self.per_dimension = bool(per_dimension)

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in nats."""
        return self._between(y_true, y_pred, (masses, masses))

    def conditional_distance(self, y_true, y_pred, masses, labels):
        """Mean over classes of the distance between examples of one class.

        The ridge is that of the teacher's classes taken together.

        A class of one example has a mean and no covariance.

        Args:
            y_true: As of `distance`.
            y_pred: As of `distance`.
            masses: Pair of the teacher's side's and the student's side's,
                `[batch]` each; a class without mass on a side is left out.
            labels: Pair of class numbers, integers `[batch]` each.

        Returns:
            Scalar tensor, in nats; 0 without any class.
        """
        return self._between(y_true, y_pred, masses, labels)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "covariance": self.covariance,
            "direction": self.direction,
            "ridge": self.ridge,
            "per_dimension": self.per_dimension,
        }

    def _between(self, y_true, y_pred, masses, labels=(None, None)):
        return gaussian_kl(
            x=flatten(y_pred),
            y=flatten(y_true),
            a=masses[1],
            b=masses[0],
            covariance=self.covariance,
            direction=_DIRECTIONS[self.direction],
            ridge=self.ridge,
            per_dimension=self.per_dimension,
            x_labels=labels[1],
            y_labels=labels[0],
        )
