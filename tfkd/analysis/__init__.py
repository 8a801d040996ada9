"""What trained models do, measured and drawn."""

from tfkd.analysis.noise import (
    NoiseRobustness,
    noise_robustness,
    plot_noise_robustness,
)

__all__ = ["NoiseRobustness", "noise_robustness", "plot_noise_robustness"]
