"""Where a stage runs, apart from what it does."""

from pydantic import BaseModel, ConfigDict, Field


class TaskResources(BaseModel):
    """A stage of stateless tasks, as many at a time as the cluster has room for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cpus: float = Field(default=0.25, gt=0, description="logical CPUs a task")


class ActorResources(BaseModel):
    """A stage of actors, each of which loads its models once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_actors: int | None = Field(default=None, ge=1, description="None: as many as the cluster has CPUs")
    num_cpus: float = Field(default=0.25, ge=0, description="logical CPUs an actor")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs an actor")


class ProposingResources(ActorResources):
    """The stage that makes or reads masks."""

    images_per_piece: int | None = Field(
        default=None,
        ge=1,
        description="images of a unit that go on together, as soon as their masks are ready; None: one by one, or one "
        "for each 16 actors, but whole units where masks are only read, or images lie together in a Parquet file",
    )


class AsyncActorResources(ActorResources):
    """A stage of actors that work on many images at a time."""

    units_in_flight: int | None = Field(
        default=None, ge=1, description="units an actor works on at a time; None: as many as have images_in_flight"
    )
    images_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="decoded images an actor holds at a time; None: 16, or a few more than its share of the requests "
        "that an engine takes at a time",
    )
