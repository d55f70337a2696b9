from .metrics.references import measure_captions as measure_captions
from .metrics.references import score as score
from .predictions import Prediction as Prediction
