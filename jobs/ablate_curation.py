"""``ureca ablate-curation``: the effect of each stage of the curation on the captions."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ureca.pipelines.ablation_settings import AblationSettings


def main(argv: Sequence[str]) -> int:
    """Run all variants, print the table, and write it as Markdown and JSON; returns 0."""
    settings = AblationSettings.load(argv)
    from ureca.errors import SettingsError
    from ureca.evaluation.ablation import to_markdown
    from ureca.io import locate, replacing
    from ureca.pipelines.ablation import ablate

    if not locate(settings.output).is_local:
        raise SettingsError(f"{settings.output} is not on this machine; name a folder for the tables and runs here")
    rows = ablate(settings, on_variant=lambda name: print(f"{name}:", file=sys.stderr))
    table = to_markdown(rows)
    dump = {"settings": settings.model_dump(mode="json"), "variants": [row.model_dump() for row in rows]}
    for name, text in (("ablation.md", table), ("ablation.json", json.dumps(dump, indent=2, ensure_ascii=False))):
        with replacing(Path(settings.output) / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(table, end="")
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
