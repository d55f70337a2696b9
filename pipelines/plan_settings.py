"""Settings of ``ureca plan`` from a finished run."""

from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_settings import CliPositionalArg

from ureca.config import ESSENTIAL, CommandSettings, Metavar


class PlanSettings(CommandSettings):
    """Estimate what a run would take: calls, tokens, duration, memory, storage, and the part that limits it.

    After `curate` or `caption` come the arguments of that command: some images are sampled and processed, and nothing
    is written; planning.* sets the sample, the engine and the prices. After MEASURED, the output of a finished `ureca
    curate` over a small sample, come the settings below and any settings of `ureca curate` that shall differ from the
    measured run, such as --resources.curate.num-actors 8 or --mllm.max-concurrency 256; --config replaces all of them.
    Both simulate the run: workers, slots of the chat model, images in flight, and processors.
    """

    command: ClassVar[str] = "plan"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca plan curate IMAGES OUTPUT --annotator.kind prompted    # before the first run",
        "ureca plan MEASURED --images 11000000 --cpus 256 --gpus 64   # from a finished run",
    )

    measured: Annotated[CliPositionalArg[str], Metavar("{curate,caption} ... | MEASURED")] = Field(
        description="a command with its arguments, or OUTPUT of a finished `ureca curate` over a small sample"
    )
    images: PositiveInt = Field(description="number of images to plan for, with MEASURED")
    as_json: Annotated[bool, ESSENTIAL] = Field(
        default=False, validation_alias="json", description="print one JSON object, for programs"
    )
    cpus: Annotated[PositiveFloat | None, ESSENTIAL] = Field(
        default=None, description="CPUs of the cluster; None: those of this machine"
    )
    gpus: Annotated[float, ESSENTIAL] = Field(
        default=0.0, ge=0, description="GPUs of the cluster, without those of chat models behind HTTP"
    )
    engine_slots: Annotated[PositiveInt | None, ESSENTIAL] = Field(
        default=None, description="answers the chat model's servers write at a time; None: as many as are requested"
    )
    answer_s: Annotated[PositiveFloat | None, ESSENTIAL] = Field(
        default=None, description="seconds of an answer when all slots are busy; None: as measured"
    )
    generate_s: Annotated[PositiveFloat | None, ESSENTIAL] = Field(
        default=None, description="seconds of a worker to generate the masks of an image; None: as measured"
    )
    step_s: Annotated[PositiveFloat | None, ESSENTIAL] = Field(
        default=None, description="seconds of an actor's processor for each question; None: as measured"
    )
    startup_s: Annotated[PositiveFloat | None, ESSENTIAL] = Field(
        default=None, description="seconds before the first image and after the last one; None: as measured"
    )
    measured_cpus: Annotated[PositiveFloat | None, ESSENTIAL] = Field(
        default=None, description="CPUs that MEASURED ran on; None: those of this machine"
    )
    measured_gpus: Annotated[float, ESSENTIAL] = Field(default=0.0, ge=0, description="GPUs that MEASURED ran on")
    measured_engine_slots: Annotated[PositiveInt | None, ESSENTIAL] = Field(
        default=None, description="engine slots that MEASURED had; None: as many as were requested"
    )
