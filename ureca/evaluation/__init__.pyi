from .metrics.scoring import measure_captions as measure_captions
from .metrics.scoring import score as score
from .predictions import Prediction as Prediction
