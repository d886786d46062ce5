from .pipeline import Pipeline as Pipeline
from .pipeline import train_detector as train_detector
