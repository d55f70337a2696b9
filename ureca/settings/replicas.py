"""How a part of the service scales, waits and ends."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Replicas(BaseModel):
    """Copies of a part of the service, and when there are more or fewer of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1, description="copies at rest")
    max_replicas: int = Field(default=1, ge=1, description="copies under load")
    num_cpus: float = Field(default=0.25, ge=0, description="logical CPUs a copy")
    num_gpus: float = Field(default=0.0, ge=0, description="GPUs a copy")
    target_ongoing_requests: float = Field(default=2.0, gt=0, description="requests a copy before there are more")
    max_ongoing_requests: int = Field(default=64, ge=1, description="requests that a copy works on at a time")
    max_queued_requests: int = Field(
        default=64, ge=1, description="requests that wait at each sender while all copies are full; then status 429"
    )
    upscale_delay_s: float = Field(default=10.0, ge=0, description="how long the load lasts before a copy is added")
    downscale_delay_s: float = Field(default=300.0, ge=0, description="and its absence before one is removed")
    look_back_period_s: float = Field(default=30.0, gt=10, description="over how long the load is averaged")
    health_check_period_s: float = Field(default=5.0, gt=0)
    health_check_timeout_s: float = Field(default=30.0, gt=0, description="an answer that takes longer: replaced")
    graceful_shutdown_timeout_s: float = Field(
        default=150.0, ge=0, description="how long a copy may finish what it has begun"
    )

    @model_validator(mode="after")
    def _can_scale(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError("target_ongoing_requests is above max_ongoing_requests: it would never be reached")
        return self
