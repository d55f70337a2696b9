"""Settings of ``ureca ablate-curation``."""

from typing import Any, ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from ureca.curation.settings import NoListenerConfig, NoVerificationConfig, RuleBasedConfig, RuleBasedListenerConfig
from ureca.evaluation.encoders import COLOUR_WORDS, DualEncoderSettings
from ureca.evaluation.uniqueness import DuplicateSettings
from ureca.pipelines.component_settings import ListenerConfig, VerificationConfig
from ureca.pipelines.curate_settings import CurateSettings

FULL = "everything"


class AblationSettings(CurateSettings):
    """Curate a corpus again and again, each time with another stage left out, and compare what comes of it.

    Everything that ``ureca curate`` knows can be set; it is what the whole curation is. OUTPUT gets ``ablation.md``,
    ``ablation.json`` and the run of each variant. The same command again does what is missing.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca ablate-curation")
    command: ClassVar[str] = "ablate-curation"

    listener: ListenerConfig = RuleBasedListenerConfig()
    verification: VerificationConfig = RuleBasedConfig()

    judge: ListenerConfig = Field(
        default=RuleBasedListenerConfig(), description="who listens to all captions at the end; prompted asks mllm"
    )
    retrieval: DualEncoderSettings | None = Field(
        default=DualEncoderSettings(checkpoint=COLOUR_WORDS),
        description="the image-text encoder of self-retrieval; None: it is not measured",
    )
    duplicates: DuplicateSettings = DuplicateSettings()

    def variants(self) -> dict[str, CurateSettings]:
        """The curation as a whole, and without each stage that it has, by what is left out."""
        changes: dict[str, dict[str, Any]] = {
            FULL: {},
            "no tree context": {"stages": self.stages.model_copy(update={"tree_context": False})},
            "no bottom-up": {"stages": self.stages.model_copy(update={"bottom_up": False})},
            "no refinement": {"stages": self.stages.model_copy(update={"refinement": False})},
        }
        if not isinstance(self.listener, NoListenerConfig):
            changes["no listener"] = {"listener": NoListenerConfig()}
        if not isinstance(self.verification, NoVerificationConfig):
            changes["no verification"] = {"verification": NoVerificationConfig()}
        changes["short captions only"] = {
            "stages": self.stages.model_copy(update={"tree_context": False, "bottom_up": False, "refinement": False}),
            "listener": NoListenerConfig(),
            "verification": NoVerificationConfig(),
        }
        return {name: self._variant(name, change) for name, change in changes.items()}

    def _variant(self, name: str, change: dict[str, Any]) -> CurateSettings:
        own = {field: getattr(self, field) for field in CurateSettings.model_fields}
        own["output"] = f"{self.output.rstrip('/')}/{name.replace(' ', '-')}"
        return CurateSettings(**own | change)
