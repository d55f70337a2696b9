"""Settings of ``ureca ablate-curation``."""

from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from ureca.config import ESSENTIAL
from ureca.curation.settings import NoListenerConfig, NoVerificationConfig, RuleBasedConfig, RuleBasedListenerConfig
from ureca.evaluation.settings import COLOUR_WORDS, DualEncoderSettings, DuplicateSettings
from ureca.pipelines.component_settings import ListenerConfig, VerificationConfig
from ureca.pipelines.curate_settings import CurateSettings

FULL = "everything"


class AblationSettings(CurateSettings):
    """Curate a corpus with each stage left out in turn, and compare the captions.

    The settings of ``ureca curate`` are those of the full curation. OUTPUT gets ``ablation.md``, ``ablation.json`` and
    the run of each variant. Re-running resumes: only unfinished work is processed.
    """

    model_config = SettingsConfigDict(cli_prog_name="ureca ablate-curation")
    command: ClassVar[str] = "ablate-curation"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca ablate-curation IMAGES OUTPUT",
        "ureca ablate-curation IMAGES OUTPUT --listing.annotations beside --masks.kind annotations",
    )

    listener: Annotated[
        ListenerConfig, Field(description="listener that must find each region by its caption"), ESSENTIAL
    ] = RuleBasedListenerConfig()
    verification: Annotated[
        VerificationConfig, Field(description="check of each caption against its region"), ESSENTIAL
    ] = RuleBasedConfig()

    judge: ListenerConfig = Field(
        default=RuleBasedListenerConfig(),
        description="listener that scores the captions of all variants; prompted uses mllm",
    )
    retrieval: DualEncoderSettings | None = Field(
        default=DualEncoderSettings(checkpoint=COLOUR_WORDS),
        description="image-text encoder of self-retrieval; None: it is left out",
    )
    duplicates: DuplicateSettings = DuplicateSettings()

    def variants(self) -> dict[str, CurateSettings]:
        """Return the settings of each variant, by the stage that is left out."""
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
