"""BERTScore: words of a caption aligned with those of a reference by contextual embeddings (Zhang et al. 2020)."""

from pydantic import BaseModel, ConfigDict, Field


class BertScoreSettings(BaseModel):
    """Which model gives the embeddings, and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="folder, or name on the hub, of an encoder in transformers' format")
    layer: int | None = Field(
        default=None,
        ge=0,
        description="hidden layer that is compared, 0: the embeddings; unset: the one published for the model, or the "
        "last",
    )
    batch_size: int = Field(default=64, ge=1, description="captions in one pass of the model")
    device: str = Field(default="auto", description="as torch names it (cpu, cuda:1); auto: a GPU if there is one")
