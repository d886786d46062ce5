from .config import Config as Config
from .data import Dataset as Dataset
from .data import read_dataset as read_dataset
from .detection import Detections as Detections
from .detection import Detector as Detector
from .detection import Ensemble as Ensemble
from .detection import load as load
from .evaluation import evaluate_detections as evaluate_detections
from .evaluation import evaluate_detector as evaluate_detector
from .training import add_background as add_background
from .training import add_classes as add_classes
from .training import join_models as join_models
from .training import remove_classes as remove_classes
from .training import rename_class as rename_class
from .training import train_detector as train_detector
from .utils import SppdetError as SppdetError

__version__: str
