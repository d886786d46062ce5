from .devkit_files import check_names as check_names
from .diagnosis_run import diagnose_run as diagnose_run
from .run import evaluate_run as evaluate_run
from .run import read_costs as read_costs
from .run import stage_line as stage_line
from .run import summary as summary
from .significance import compare_runs as compare_runs
