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
from tfkd.analysis.transport_trace import (
    TransportTrace,
    TransportTraceLogger,
    plot_transport_trace,
    transport_trace,
)

__all__ = [
    "FeatureAlignment",
    "NoiseRobustness",
    "TransportTrace",
    "TransportTraceLogger",
    "feature_alignment",
    "noise_robustness",
    "plot_curves",
    "plot_feature_alignment",
    "plot_noise_robustness",
    "plot_transport_trace",
    "transport_trace",
]
