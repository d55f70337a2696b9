"""What ``curate --plan`` goes through some images with."""

from dataclasses import replace
from functools import partial

from pipelines.curate import build_propose_stage, engine_concurrency
from pipelines.estimate import Rehearsal
from ureca.curation.rehearsal import UnderstandingListener, counted
from ureca.curation.stages import CurateStage, plant
from ureca.settings.components import build_chat_model, build_curator
from ureca.settings.curate import CurateSettings
from ureca.settings.mllm import ByRayServe, ByTransformers, ByVllm, Mllm, StandIn


def curate_rehearsal(settings: CurateSettings) -> Rehearsal:
    """The curation with a chat model that costs nothing, or with its own where ``planning.ask_model`` says so.

    Raises:
        SettingsError: a checkpoint, a package or the MLLM's key is missing; or it cannot be asked before a run.
    """
    ask = settings.planning.ask_model
    model = counted(build_chat_model(settings.mllm) if ask else None)
    curator = build_curator(settings, model)
    if curator.listener is not None and not ask:
        curator = replace(curator, listener=UnderstandingListener(curator.listener))
    kinds: set[str] = {settings.annotator.kind, settings.listener.kind, settings.verification.kind}
    return Rehearsal(
        propose=build_propose_stage(settings),
        prepare=partial(plant, containment=settings.tree.containment),
        write=CurateStage(curator, settings.image_limits, settings.planning.images),
        questions=model.questions,
        asks_model=ask,
        engine_places=partial(_places, settings.mllm) if _has_engine(settings, kinds) else None,
    )


def _has_engine(settings: CurateSettings, kinds: set[str]) -> bool:
    return "prompted" in kinds and not isinstance(settings.mllm, StandIn)


def _places(mllm: Mllm, num_actors: int) -> int | None:
    """Answers that the engine gives at a time; None: nobody has said."""
    match mllm:
        case ByRayServe():
            return mllm.max_replicas * mllm.requests_per_replica
        case ByTransformers():
            return mllm.max_batch_size * num_actors
        case ByVllm():
            places = mllm.engine_options.get("max_num_seqs")
            return None if places is None else int(places) * num_actors
    return engine_concurrency(mllm)
