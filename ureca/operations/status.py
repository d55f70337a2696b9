"""How far a run is, from what it has written: any machine that sees its folder can tell."""

import json
import time
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ureca.corpus.storage import locate
from ureca.dataset import Output
from ureca.errors import OutputError
from ureca.schema import DATASETS

SILENCE_S = 60.0
"""A running session renews its claim every few seconds: one that has not for so long is taken for lost."""


class Status(BaseModel):
    """How far a run is.

    Attributes:
        output: folder or URI of the run, without options of the URI.
        verb: that writes it.
        state: ``lost`` is a run that says it is running although nothing has shown that for ``SILENCE_S``.
        counted: what is counted; of an evaluation, each image once a model.
        num_total: to be done; None: it is not known yet.
        num_done: whatever became of them.
        num_failed: of those that are done, images with an error or bad samples of a training; None: not looked up.
        failures: how often each kind occurred, over images and regions; None: not looked up.
        rate_per_s: of the session that came last; None: it has not done enough.
        left_s: at that rate, where it runs; None: unknown.
        silent_s: since it last wrote a result; None: it has written none.
        session_started: of the session that came last, as ISO 8601.
        num_sessions: that there were.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str
    verb: str
    state: Literal["running", "stopped", "finished", "lost"]
    counted: Literal["images", "steps"]
    num_total: int | None
    num_done: int
    num_failed: int | None = None
    failures: dict[str, int] | None = None
    rate_per_s: float | None = None
    left_s: float | None = None
    silent_s: float | None = None
    session_started: str
    num_sessions: int


def status_of(path: str, *, quick: bool = False, clock: Callable[[], float] = time.time) -> Status:
    """Tell how far a run is.

    Args:
        path: folder or URI of the run: of a batch verb, an evaluation, or a training.
        quick: look at names and times only, not into every file: failures stay unknown.
        clock: seconds since 1970, as file systems have them.

    Raises:
        InputError: the URI's scheme or place is unknown.
        OutputError: there is no run, its record cannot be read, or it is of another kind.
    """
    from ureca.operations.batch_status import batch_status
    from ureca.operations.evaluation_status import evaluation_status
    from ureca.operations.training_status import training_status

    output = Output(path)
    run = output.run()
    dataset = DATASETS.get(run.get("dataset", ""))
    try:
        if run.get("verb") == "train":
            return training_status(locate(path), run, clock())
        if run.get("verb") == "evaluate":
            return evaluation_status(output, run, quick, clock())
        if dataset is not None:
            return batch_status(Output(path, dataset), run, quick, clock())
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise OutputError(f"{path}: its record is incomplete or damaged ({type(error).__name__}: {error})") from error
    raise OutputError(f"{path} is the output of {run.get('verb')!r}, whose progress cannot be told from its folder")
