from .calibration import calibrate_detector as calibrate_detector
from .folds import measure_learning_curve as measure_learning_curve
from .front_door import run_training as run_training
from .front_door import settings_following_data as settings_following_data
from .front_door import train_detector as train_detector
from .pipeline import Pipeline as Pipeline
