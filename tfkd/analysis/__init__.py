"""What trained models do, measured and drawn."""

from tfkd.analysis.alignment import (
    FeatureAlignment,
    feature_alignment,
    plot_feature_alignment,
)
from tfkd.analysis.curves import plot_curves
from tfkd.analysis.noise import (
    NoiseRobustness,
    noise_robustness,
    plot_noise_robustness,
)

__all__ = [
    "FeatureAlignment",
    "NoiseRobustness",
    "feature_alignment",
    "noise_robustness",
    "plot_curves",
    "plot_feature_alignment",
    "plot_noise_robustness",
]
