from .data_settings import Choice as Choice
from .data_settings import choices_of_run as choices_of_run
from .data_settings import choose_settings as choose_settings
from .pipeline import Pipeline as Pipeline
from .pipeline import train_detector as train_detector
