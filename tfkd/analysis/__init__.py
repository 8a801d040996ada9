"""What trained models do, measured and drawn."""

from tfkd.analysis.alignment import (
    FeatureAlignment,
    feature_alignment,
    plot_feature_alignment,
)
from tfkd.analysis.calibration import calibration_error
from tfkd.analysis.confusion import (
    ClassScores,
    class_scores,
    confusion_matrix,
    plot_confusion,
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
    "ClassScores",
    "FeatureAlignment",
    "NoiseRobustness",
    "TransportTrace",
    "TransportTraceLogger",
    "calibration_error",
    "class_scores",
    "confusion_matrix",
    "feature_alignment",
    "noise_robustness",
    "plot_confusion",
    "plot_curves",
    "plot_feature_alignment",
    "plot_noise_robustness",
    "plot_transport_trace",
    "transport_trace",
]
