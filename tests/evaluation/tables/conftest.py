"""A table whose names mean harm, and a browser where there is one."""

import pytest

from ureca.evaluation.measures import COLUMNS, Unmeasured, mean_of
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.settings import TableSettings
from ureca.evaluation.tables.build import Evaluated, EvaluationTable, build_table

HOSTILE = (
    "</title></style></td><script>document.title='taken'</script><img src=http://198.51.100.1/x onerror=alert(1)> "
    "\"'&amp; | ![x](http://198.51.100.1/y) `a` **b**\n# c"
)


@pytest.fixture(scope="session")
def hostile_table() -> EvaluationTable:
    regions = [
        Prediction(HOSTILE, place, "", ("a car",), place % 3, 0.001 * place, failure=HOSTILE) for place in range(4)
    ] + [Prediction(str(place), place, HOSTILE, (HOSTILE,), place % 3, 0.1) for place in range(4)]
    measures = [mean_of(name, [place / 8 for place in range(8)]) for name in COLUMNS if name != "BERTScore"]
    models = [
        Evaluated(HOSTILE, regions, [*measures, Unmeasured("BERTScore", HOSTILE)], (HOSTILE,)),
        Evaluated("plain", regions, [mean_of("Correct", [1.0] * 8), mean_of("Wrong", [0.0] * 8)]),
    ]
    return build_table(models, TableSettings(num_resamples=100), title=HOSTILE)
