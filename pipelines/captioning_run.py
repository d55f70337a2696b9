"""``caption`` as a batch verb."""

from collections.abc import Callable

import pyarrow as pa

from pipelines.batch_run import BatchVerb, run_batch
from pipelines.caption import build_caption_stage, build_propose_stage, graph
from pipelines.estimate import Rehearsal, estimate
from pipelines.progress import Progress
from ureca.captioning.adopt import list_run
from ureca.captioning.checkpoint import Checkpoint, identify
from ureca.corpus.listing import list_images
from ureca.corpus.storage import locate
from ureca.dataset import Output, UnitReport
from ureca.errors import InputError, SettingsError
from ureca.schema import CAPTIONS_DATASET
from ureca.settings.caption import Automatic, CaptioningSettings
from ureca.settings.proposals import FromRegions, FromSegments

# What the checkpoint is, its fingerprint tells; how many regions are written at once makes no other captions.
_MAY_CHANGE = frozenset({"model", "captioner.batch_size"})


def caption(
    settings: CaptioningSettings,
    on_plan: Callable[[int, int], None],
    progress_of: Callable[[int], Progress] = Progress,
) -> UnitReport:
    """Caption what is missing in the output, and, if asked for, again what failed; see ``run_batch``.

    Raises:
        CheckpointError: the model is not a checkpoint.
        SettingsError: it is not URECA, and how it is shown a region is not said.
    """
    identity = {"model": usable_checkpoint(settings).identity}
    return run_batch(_CAPTION, _resolved(settings), on_plan, progress_of, identity)


def plan(settings: CaptioningSettings) -> str:
    """What ``caption`` would take, as lines for people; nothing is started, and nothing written.

    The model is loaded and asked only where ``planning.ask_model`` says so.

    Raises:
        CheckpointError: the model is not a checkpoint.
        SettingsError: it is not URECA, and how it is shown a region is not said.
        InputError: there is nothing to read, or nothing to do.
    """
    usable_checkpoint(settings)
    settings = _resolved(settings)
    ask = settings.planning.ask_model
    rehearsal = Rehearsal(
        propose=build_propose_stage(settings),
        prepare=lambda unit: unit,
        write=build_caption_stage(settings, settings.planning.images) if ask else None,
        questions={},
        asks_model=ask,
        engine_places=None,
    )
    return estimate(_CAPTION, settings, rehearsal, "caption")


def usable_checkpoint(settings: CaptioningSettings) -> Checkpoint:
    """What the model is, if it can be told of regions as the settings say.

    Raises:
        CheckpointError: it is not a checkpoint.
        SettingsError: it cannot.
    """
    checkpoint = identify(settings.model)
    if checkpoint.kind == "ureca":
        if settings.image_options:
            raise SettingsError("image_options are for baselines; a checkpoint of URECA says itself how images are cut")
    elif settings.region_prompt in {None, "mask"}:
        raise SettingsError(
            f"{settings.model} is not a folder with a checkpoint of URECA. If it is another model that sees images, "
            "say how it is shown which region is meant: none, contour or crop (by region_prompt; to ureca evaluate as "
            "PATH:crop)"
        )
    elif settings.captioner.top_p < 1:
        raise SettingsError(f"captioner.top_p is for checkpoints of URECA; {settings.model} has captioner.temperature")
    return checkpoint


def _resolved(settings: CaptioningSettings) -> CaptioningSettings:
    """The settings with what ``proposals.kind auto`` stands for."""
    if not isinstance(settings.proposals, Automatic):
        return settings
    proposals = FromRegions() if Output(settings.input).exists() else FromSegments()
    return settings.model_copy(update={"proposals": proposals})


def _list_input(settings: CaptioningSettings) -> pa.Table:
    from_regions = isinstance(settings.proposals, FromRegions)
    if not Output(settings.input).exists():
        if from_regions:
            raise InputError(
                f"{settings.input} is not the output of a run, which proposals.kind regions takes masks from; name the "
                "folder that has run.json"
            )
        return list_images(settings.input, **settings.listing.model_dump())
    if named := [name for name, value in settings.listing if value is not None]:
        raise InputError(
            f"{settings.input} is the output of a run, which knows its images: leave out listing.{named[0]}"
        )
    if locate(settings.input).name == locate(settings.output).name:
        raise InputError(f"{settings.input} is both the input and the output; name another folder for the captions")
    return list_run(Output.of_run(settings.input), with_regions=from_regions)


_CAPTION = BatchVerb(
    name="caption",
    dataset=CAPTIONS_DATASET,
    list_input=_list_input,
    graph=graph,
    may_change=_MAY_CHANGE,
    packages=("torch", "transformers"),
)
