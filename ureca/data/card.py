"""The dataset card of an output folder, by which ``datasets.load_dataset`` finds its Parquet files."""

import json

from ureca import __version__, io
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.io import below, locate

CARD = "README.md"
_MARK = "<!-- Written by ureca; a file without this line is never replaced. -->"

_SIZES = (
    *((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")),
    *((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B")),
    *((10_000_000_000, "1B<n<10B"), (100_000_000_000, "10B<n<100B"), (1_000_000_000_000, "100B<n<1T")),
)

_TEXT = """\
---
configs:
- config_name: default
  data_files: {dataset}/part-*.parquet
tags:
- region-captioning
size_categories:
- {size}
---
{mark}

# {title}

{num_images} images with {num_regions} captioned regions, written by `ureca {command}` {version}.
`run.json` has the settings, versions and totals, `{dataset}/` one row per image.
{num_failed} rows have an `error` in place of regions.

```python
import datasets

rows = datasets.load_dataset("FOLDER", split="train")  # FOLDER is this folder
```

```sql
-- DuckDB: one row per region
SELECT image_id, unnest({dataset}, recursive := true) FROM 'FOLDER/{dataset}/part-*.parquet'
```

```python
import polars

regions = polars.read_parquet("FOLDER/{dataset}/part-*.parquet").explode("{dataset}").unnest("{dataset}")
```

`uri` names the file of each image: pixels are not copied. `ureca export` writes COCO files, URECA's JSONL, flat
Parquet, and a dataset with its images for the Hugging Face Hub.
"""


def write_card(output: Output, command: str, report: PartitionReport) -> None:
    """Write the card of a finished run, unless the folder has a README.md of somebody else.

    Args:
        output: output of the run.
        command: name of the command that wrote it.
        report: report of the whole output.

    Raises:
        OutputError: it cannot be written.
    """
    if not is_replaceable(output):
        return
    text = _TEXT.format(
        dataset=output.dataset.name,
        size=size_category(report.num_images),
        mark=_MARK,
        title=json.dumps(output.path.partition("?")[0].rstrip("/").rpartition("/")[2], ensure_ascii=False)[1:-1],
        num_images=report.num_images,
        num_regions=report.num_regions,
        num_failed=report.num_failed,
        command=command,
        version=__version__,
    )
    io.write_bytes(output.filesystem, locate(below(output.path, CARD)).name, text.encode())


def size_category(num_rows: int) -> str:
    """Return the size of a dataset as the Hugging Face Hub names it, such as ``1K<n<10K``."""
    return next((name for limit, name in _SIZES if num_rows < limit), "n>1T")


def is_replaceable(output: Output) -> bool:
    """Tell whether the folder has no README.md, or one that ``write_card`` has written."""
    name = locate(below(output.path, CARD)).name
    if not output.filesystem.get_file_info(name).is_file:
        return True
    with output.filesystem.open_input_stream(name) as stream:
        return _MARK.encode() in bytes(stream.read(4096))
