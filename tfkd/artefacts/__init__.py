"""Trained networks run from their files: Keras, SavedModel, LiteRT, ONNX."""

from tfkd.artefacts.runner import Runner, open_artefact
from tfkd.artefacts.sidecar import Sidecar, read_sidecar

__all__ = ["Runner", "Sidecar", "open_artefact", "read_sidecar"]
