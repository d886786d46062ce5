from .config import Config as Config
from .detection import Detections as Detections
from .detection import Detector as Detector
from .detection import Ensemble as Ensemble
from .detection import load as load
from .utils import SppdetError as SppdetError

__version__: str
