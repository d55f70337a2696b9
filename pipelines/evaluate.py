"""``ureca evaluate``: store a benchmark, caption it with each model, score the captions and write the table."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

from ureca import io
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.run_record import RunRecord, State
from ureca.data.settings import ReusedMasksConfig
from ureca.errors import SettingsError
from ureca.evaluation.benchmarks.base import ImageSample
from ureca.evaluation.benchmarks.readers import open_benchmark
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.evaluation.measures import Unmeasured
from ureca.evaluation.metrics.bert_score import check_encoder
from ureca.evaluation.metrics.java import tokenize
from ureca.evaluation.models import EvaluatedModel, parse_models
from ureca.evaluation.predictions import read_jsonl_captions, read_output_captions, write_predictions
from ureca.evaluation.scoring import stored_predictions
from ureca.evaluation.tables.build import Evaluated, EvaluationTable, build_table
from ureca.evaluation.tables.formats import to_forms
from ureca.io import below, locate
from ureca.model.checkpoint_files import identify
from ureca.pipelines.batch.executor import choose_executor
from ureca.pipelines.caption import caption, usable_checkpoint
from ureca.pipelines.caption_settings import CaptioningSettings, CaptionResources
from ureca.pipelines.evaluate_settings import EvaluateSettings
from ureca.pipelines.judge import Scoring
from ureca.schema import CAPTIONS_DATASET
from ureca.wording import quantity

_BENCHMARK, _MODELS, _JUDGED, _TABLE = "benchmark", "models", "judged", "table"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        table: table of all models.
        reports: reports of the captions, by name of the model.
    """

    table: EvaluationTable
    reports: Mapping[str, PartitionReport]


def evaluate(settings: EvaluateSettings, tell: Tell) -> Evaluation:
    """Run the steps that the output lacks, and write the table.

    Args:
        settings: settings of the command.
        tell: callback that gets a message about the next step.

    Raises:
        InputError: the benchmark, or captions that are there, cannot be read.
        CheckpointError, SettingsError: a model is none, or settings do not fit.
        OutputError: the folder is another run's, or was begun with other settings.
    """
    run = _Run(settings, tell)
    reports: dict[str, PartitionReport] = {}
    with run.output.lease(on_wait=tell):
        try:
            run.begin()
            with run.executing():
                for place, model in enumerate(run.models, start=1):
                    reports[model.name] = run.caption(model, place)
                evaluated = [run.evaluate(model) for model in run.models]
            table = run.write_table(evaluated)
        except BaseException:
            run.write_record("stopped", reports)
            raise
        run.write_record("finished", reports)
    return Evaluation(table, reports)


class _Run:
    """One session; the constructor checks the settings before anything is written."""

    def __init__(self, settings: EvaluateSettings, tell: Tell) -> None:
        self._settings = settings
        self._tell = tell
        self.output = Output(settings.output)
        self._record = RunRecord(self.output, settings.command, settings)
        self.models = parse_models(settings.models)
        for model in self.models:
            if model.kind == "checkpoint":
                usable_checkpoint(self._captioning(model))
        self._unmeasured = _check_metrics(settings)
        self._source = open_benchmark(settings.input, settings.benchmark)

    def begin(self) -> None:
        """Store the benchmark, unless an earlier session did."""
        self._benchmark = self._stored_benchmark()
        settings, num_images = self._settings, self._benchmark.num_images
        executor = choose_executor(settings, settings.resources, num_images)  # one for all models and scores
        self._settings = settings.model_copy(update={"executor": executor})
        self._judging = Scoring(
            self._settings,
            self._benchmark,
            self._below(_JUDGED),
            None if self._unmeasured else self._settings.bert_score,
            self._tell,
        )

    def executing(self) -> AbstractContextManager[None]:
        """Return the context of the steps that follow: one Ray session for all of them, started when it is needed."""
        if self._settings.executor == "local":
            return nullcontext()
        from ureca.pipelines.batch.session import shared_session

        return shared_session()

    def _stored_benchmark(self) -> StoredBenchmark:
        settings = self._settings
        if settings.overwrite:
            for name in (_BENCHMARK, _MODELS, _JUDGED):
                io.remove_folder(self.output.filesystem, locate(self._below(name)).name)
        self.write_record("running", {})
        stored = StoredBenchmark.open(
            self._below(_BENCHMARK),
            self._source,
            ImageSample(settings.limit, settings.seed),
            {"limit": settings.limit, "seed": settings.seed, **settings.benchmark.model_dump(mode="json")},
        )
        regions, images = quantity(stored.num_regions, "region"), quantity(stored.num_images, "image")
        self._tell(f"{stored.description}: {regions} of {images}")
        return stored

    def caption(self, model: EvaluatedModel, place: int) -> PartitionReport:
        """Have the regions captioned, or take captions that are there."""
        self._tell(f"{model.name} ({place} of {len(self.models)})")
        output = self._captions(model)
        if model.kind == "checkpoint":
            settings = self._captioning(model, self._benchmark.images_per_partition)
            return caption(settings)
        read = read_jsonl_captions if model.kind == "jsonl" else read_output_captions
        return write_predictions(read(model.path), self._benchmark, output, source=model.path)

    def evaluate(self, model: EvaluatedModel) -> Evaluated:
        """Measure a model's captions."""
        self._tell(f"{model.name}: measuring")
        predictions = stored_predictions(self._benchmark, self._captions(model))
        measures, remarks = self._judging.measures(predictions, self._captions(model).path)
        return Evaluated(model.name, predictions, [*measures, *self._unmeasured], remarks)

    def write_table(self, evaluated: Sequence[Evaluated]) -> EvaluationTable:
        """Build the table, and write it as Markdown, JSON and HTML."""
        self._tell("building the table")
        benchmark = self._benchmark
        remarks = []
        if self._settings.limit is not None:
            remarks.append(
                f"A sample of the benchmark: {quantity(benchmark.num_images, 'image')}, by seed {self._settings.seed}."
            )
        if benchmark.left_out:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in benchmark.left_out.items())
            remarks.append(f"Regions of the benchmark that cannot be used are left out for all models ({reasons}).")
        table = build_table(evaluated, self._settings.table, title=benchmark.description, remarks=remarks)
        for suffix, text in to_forms(table).items():
            path = locate(self._below(f"{_TABLE}.{suffix}")).name
            io.write_bytes(self.output.filesystem, path, text.encode())
        return table

    def write_record(self, state: State, reports: Mapping[str, PartitionReport]) -> None:
        """Write run.json."""
        totals = {name: report.model_dump() for name, report in reports.items()}
        models = [
            {**asdict(model), "captions": f"{_MODELS}/{model.folder}", "totals": totals.get(model.name)}
            for model in self.models
        ]
        self._record.write(state, benchmark=_BENCHMARK, models=models)

    def _below(self, name: str) -> str:
        return below(self._settings.output, name)

    def _captions(self, model: EvaluatedModel) -> Output:
        return Output(self._below(f"{_MODELS}/{model.folder}"), CAPTIONS_DATASET)

    def _captioning(self, model: EvaluatedModel, images_per_partition: int | None = None) -> CaptioningSettings:
        settings = self._settings
        captioner, image_options = settings.captioner, {}
        if identify(model.path).kind == "mllm" and model.region_prompt is not None:
            question = getattr(settings.baseline, model.region_prompt, captioner.question)
            captioner = captioner.model_copy(update={"question": question})
            image_options = settings.baseline.image_options
        return CaptioningSettings(
            input=self._below(_BENCHMARK),
            output=self._captions(model).path,
            model=model.path,
            region_prompt=model.region_prompt,
            image_options=image_options,
            dtype=settings.dtype,
            masks=ReusedMasksConfig(),
            captioner=captioner,
            image_limits=settings.image_limits,
            images_per_partition=images_per_partition,
            retry_errors=settings.retry_errors,
            executor=settings.executor,
            resources=CaptionResources(
                read=settings.resources.read, masks=settings.resources.masks, caption=settings.resources.caption
            ),
        )


def _check_metrics(settings: EvaluateSettings) -> list[Unmeasured]:
    """Make sure, before anything is captioned, that metrics can be computed; what of BERTScore cannot."""
    if set(settings.metrics) - {"BERTScore"}:
        tokenize(["a word"])
    if settings.bert_score is None:
        return []
    try:
        check_encoder(settings.bert_score)
    except SettingsError as error:
        return [Unmeasured("BERTScore", str(error))]
    return []
