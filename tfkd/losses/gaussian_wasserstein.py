"""The Wasserstein distance between the Gaussians of two batches."""

import keras

from tfkd.losses.distribution import DistributionLoss, flatten
from tfkd.transport import gaussian_squared_wasserstein
from tfkd.transport.moments import check_covariance


@keras.saving.register_keras_serializable("tfkd")
class GaussianWasserstein(DistributionLoss):
    """Squared 2-Wasserstein distance between two batches taken as Gaussians.

    Formula: `|m_T - m_S|^2 + tr(S_T + S_S - 2 (S_T^1/2 S_S S_T^1/2)^1/2)`,
    with m and S the mean and covariance of the flattened signals. With
    `covariance="diagonal"`, `|m_T - m_S|^2 + |s_T - s_S|^2` of the standard
    deviations.

    It compares means and covariances, no more: zero for batches that agree
    in both. A batch smaller than the number of features will do. See
    `tfkd.transport.gaussian_squared_wasserstein`.

    Args:
        covariance: "full" or "diagonal".
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If `covariance` is unknown.

    Example:

    >>> loss = GaussianWasserstein()
    >>> float(loss([[-1.0], [1.0]], [[7.0], [13.0]]))  # 10^2 + (3 - 1)^2
    104.0

    Reference: Fernandes Montesuma 2025, equation 5.
    """

    def __init__(
        self,
        covariance="full",
        *,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        check_covariance(covariance)
        self.covariance = covariance

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in squared units of the signals."""
        return self._between(y_true, y_pred, (masses, masses))

    def conditional_distance(self, y_true, y_pred, masses, labels):
        """Mean over classes of the distance between examples of one class.

        A class of one example has a mean and no covariance.

        Args:
            y_true: As of `distance`.
            y_pred: As of `distance`.
            masses: Pair of the teacher's side's and the student's side's,
                `[batch]` each; a class without mass on a side is left out.
            labels: Pair of class numbers, integers `[batch]` each.

        Returns:
            Scalar tensor, in squared units of the signals; 0 without any class.
        """
        return self._between(y_true, y_pred, masses, labels)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "covariance": self.covariance}

    def _between(self, y_true, y_pred, masses, labels=(None, None)):
        return gaussian_squared_wasserstein(
            x=flatten(y_pred),
            y=flatten(y_true),
            a=masses[1],
            b=masses[0],
            covariance=self.covariance,
            x_labels=labels[1],
            y_labels=labels[0],
        )
