"""The stages of the curation within a Ray Data pipeline of one's own.

    python examples/ray_data_pipeline.py [OUTPUT]

Rows of one's own dataset come in, with images as paths, bytes or arrays; the same rows come out with the columns of
`ureca.schema.REGIONS`. Operators before and after are the user's.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import skimage

from ureca.pipelines.curate import add_stages


def keep_largest(row: dict[str, Any]) -> dict[str, Any]:
    """Replace the regions of a row by the caption of the largest one."""
    regions = [region for region in row["regions"] if region["status"] == "ok"]
    largest = max(regions, key=lambda region: region["area_px"], default=None)
    caption = None if largest is None else largest["caption"]
    return {"image_id": row["image_id"], "license": row["license"], "caption": caption, "num_regions": len(regions)}


def main(argv: list[str]) -> int:
    """Caption two photographs that ship inside scikit-image, and write one caption each."""
    output = Path(argv[0] if argv else tempfile.mkdtemp())
    data = Path(skimage.__file__).parent / "data"
    rows = [
        {"path": str(data / name), "image_id": name.partition(".")[0], "license": "see scikit-image"}
        for name in ("coffee.png", "rocket.jpg")
    ]
    photographs = ray.data.from_items(rows)
    captioned = add_stages(photographs, {"masks": {"kind": "segments", "max_masks": 40}})
    captioned.map(keep_largest).write_parquet(str(output))
    for row in ray.data.read_parquet(str(output)).take_all():
        print(f"{row['image_id']}: {row['num_regions']} regions; the largest: {row['caption']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
