"""The curation of one corpus with stages left out one by one, on one Ray session."""

from collections.abc import Callable

from ureca.data.output import Output
from ureca.evaluation.ablation import VariantResult, measure_variant
from ureca.evaluation.encoders import build_encoder
from ureca.evaluation.scorer import CaptionScorer
from ureca.pipelines.ablation_settings import AblationSettings
from ureca.pipelines.batch.session import ray_session
from ureca.pipelines.curate import curate
from ureca.registry import build_component


def ablate(settings: AblationSettings, on_variant: Callable[[str], None] = lambda name: None) -> list[VariantResult]:
    """Run each variant, unless it is finished, and measure it.

    Args:
        settings: settings of the command.
        on_variant: callback that gets the name of each variant before it runs.

    Returns:
        The results of the whole curation first, then of one without each of its stages.

    Raises:
        InputError, OutputError, SettingsError: as ``curate``.
    """
    judge = settings.judge
    model = build_component("chat_model", settings.mllm)
    listener = None if judge.kind == "none" else build_component("listener", judge, model)
    scorer = CaptionScorer(build_encoder(settings.retrieval), listener)
    results = []
    with ray_session():
        for name, variant in settings.variants().items():
            on_variant(name)
            curate(variant, on_plan=lambda num_images, num_to_do: None)
            results.append(measure_variant(name, Output(variant.output), scorer, settings.duplicates))
    return results
