"""The curation of one corpus with stages left out one by one, on one Ray session."""

from collections.abc import Callable

from pipelines.curation_run import curate
from pipelines.session import ray_session
from ureca.dataset import Output
from ureca.evaluation.ablation import Ablated, Judges, measure_variant
from ureca.settings.ablation import AblationSettings
from ureca.settings.components import build_encoder, build_judge


def ablate(settings: AblationSettings, on_variant: Callable[[str], None] = lambda name: None) -> list[Ablated]:
    """Run each variant, as far as that was not done before, and measure it.

    Args:
        settings: of the verb.
        on_variant: told the name of each variant before it runs.

    Returns:
        the whole curation first, then one without each of its stages.

    Raises:
        InputError, OutputError, SettingsError: as ``curate``.
    """
    judges = Judges(
        listener=build_judge(settings), encoder=build_encoder(settings.retrieval), duplicates=settings.duplicates
    )
    measured = []
    with ray_session():
        for name, variant in settings.variants().items():
            on_variant(name)
            curate(variant, on_plan=lambda num_images, num_to_do: None)
            measured.append(measure_variant(name, Output(variant.output), judges))
    return measured
