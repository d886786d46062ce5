"""Frozen trunks in ONNX Runtime, which runs them faster than PyTorch on most CPUs and loads in a tenth of its time."""

from __future__ import annotations

import importlib.util
import json
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.networks.normalisation import Normalisation
from sppdet.networks.trunk_output import CellGrid, Cut
from sppdet.utils import thread_count

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def has_onnxruntime() -> bool:
    """Whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


class OnnxTrunk:
    """A trunk that ONNX Runtime runs on the CPU, in float32 or 8-bit integers.

    Runs in as many threads as `sppdet.utils.thread_count` says; several threads may run it at a time.

    Args:
        model: what `sppdet.networks.onnx_export.onnx_model` or `sppdet.networks.onnx_int8.int8_model` returned.

    Attributes:
        model: the file's content.
        name: the network.
        weights: digest of its weights, see `sppdet.networks.weights.weights_digest`.
        grid: where the cells of a feature map lie in the trunk's input.
        layer_channels: channels of a feature map, those of each layer of ``cut``.
        cut: where the trunk ends.
        precision: ``float32`` or ``int8``.
        normalisation: of the trunk's input.

    Raises:
        ValueError: the model is damaged, or none of `onnx_model`.
    """

    def __init__(self, model: bytes):
        self.model = model
        self._sessions: dict[int, InferenceSession] = {}
        self._lock = Lock()
        try:
            metadata = self._session().get_modelmeta().custom_metadata_map
            described: dict[str, Any] = json.loads(metadata["sppdet"])
            self.name, self.weights = str(described["name"]), str(described["weights"])
            self.grid, self.cut = CellGrid(**described["grid"]), Cut.restore(described["cut"])
            self.layer_channels = tuple(map(int, described["layer_channels"]))
            self.precision = str(described.get("precision", "float32"))
            normalisation = described["normalisation"]
            self.normalisation = Normalisation(**normalisation | {k: tuple(normalisation[k]) for k in ("mean", "std")})
        except Exception as error:  # ONNX Runtime raises kinds of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"is no trunk in ONNX form ({reason[:120]})") from None

    def __reduce__(self) -> tuple[type[OnnxTrunk], tuple[bytes]]:
        return OnnxTrunk, (self.model,)  # sessions stay on their machine

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return the feature maps ``(N, C, h, w)`` of normalised images ``(N, 3, H, W)``, both float32."""
        return self._session().run(None, {"image": np.ascontiguousarray(pixels)})[0]

    def _session(self) -> InferenceSession:
        """Return the session that runs in the calling thread's number of threads, which a session fixes."""
        count = thread_count()
        with self._lock:
            if count not in self._sessions:
                from onnxruntime import InferenceSession, SessionOptions

                options = SessionOptions()
                options.intra_op_num_threads = count
                options.log_severity_level = 3  # errors
                self._sessions[count] = InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
            return self._sessions[count]
