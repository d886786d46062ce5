from .data_settings import Choice as Choice
from .data_settings import choices_of_run as choices_of_run
from .data_settings import choose_settings as choose_settings
from .front_door import run_training as run_training
from .front_door import settings_following_data as settings_following_data
from .front_door import train_detector as train_detector
from .pipeline import Pipeline as Pipeline
