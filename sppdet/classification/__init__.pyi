from .classifier import Classifier as Classifier
from .classifier import SPPClassifier as SPPClassifier
from .classifier import load_classifier as load_classifier
from .run import evaluate_run as evaluate_run
from .run import saved_settings as saved_settings
from .run import train_run as train_run
from .training import to_pixels as to_pixels
from .training import train_classifier as train_classifier
