from .recall import best_overlaps as best_overlaps
from .recall import proposal_recall as proposal_recall
from .recall import recall_line as recall_line
from .recall import recall_of_samples as recall_of_samples
from .recall import recall_table as recall_table
from .search import SelectiveSearch as SelectiveSearch
