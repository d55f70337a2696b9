"""Commands of the pages that are run, and those that cannot be."""

from collections.abc import Mapping

from tests.documents.running import PORT, Chapter, Step
from tests.experiments.test_experiment import FLAGS as SMALL_SCIENCE

_ALL_CURATED = r"images +3, of which 0 failed"
_ONE_STEP = (
    "--max-steps 1 --batch.regions-per-image 2 --precision fp32 --no-gradient-checkpointing --deepspeed.zero-stage 0"
)
_FEW_TOKENS = "--captioner.max-new-tokens 4 --resources.caption.num-actors 1"
_QUICK_TABLE = f"{_FEW_TOKENS} --resources.judge.num-actors 1 --metrics BLEU --table.num-resamples 100"
_TABLE = ("OUTPUT/table.md", "OUTPUT/table.json", "OUTPUT/table.html")
_TRAINED = ("RUN/model/*.safetensors", "RUN/run.json", "RUN/metrics.jsonl")
_HERE = f"--port {PORT}"
_AS_DOCUMENTED = {"--models", "--training.budget-s", "--metrics"}
_SMALL_SCIENCE = " ".join(
    f"{flag} {value}"
    for flag, value in zip(SMALL_SCIENCE[::2], SMALL_SCIENCE[1::2], strict=True)
    if flag not in _AS_DOCUMENTED
)

CHAPTERS = (
    Chapter(
        "on your images",
        (
            Step("ureca curate --help", says="--annotator.kind"),
            Step("ureca plan curate IMAGES OUTPUT", says="3 to do(?s:.*)captioned regions +about(?s:.*)duration"),
            Step("ureca curate IMAGES OUTPUT", _ALL_CURATED, ("OUTPUT/regions/part-*.parquet", "OUTPUT/run.json")),
            Step("ureca curate IMAGES OUTPUT", says="3 done before, 0 to do"),
            Step("ureca curate IMAGES OUTPUT --retry-errors", says="3 done before, 0 to do"),
            Step("ureca status OUTPUT", says="3 of 3 done"),
            Step("ureca status OUTPUT --quick", says="3 of 3 done"),
            Step("ureca report OUTPUT", leaves=("OUTPUT/report.html",)),
            Step("ureca export OUTPUT --format jsonl --to train.jsonl", leaves=("train.jsonl",)),
            Step("ureca export OUTPUT --format label-studio --to tasks.json", leaves=("tasks.json", "tasks.xml")),
            Step(
                "ureca import-corrections OUTPUT project.json --format label-studio",
                says="no new decision",
                instead={"project.json": "tasks.json"},
            ),
            Step("ureca export OUTPUT --format fiftyone --to samples/", leaves=("samples/samples.json",)),
            Step(
                "ureca import-corrections OUTPUT corrected/ --format fiftyone",
                says="no new decision",
                instead={"corrected/": "samples"},
            ),
        ),
    ),
    Chapter("a tour", (Step("ureca demo", leaves=("demo/report.html",), more="--part photographs"),)),
    Chapter(
        "data to train on",
        (
            Step("ureca curate IMAGES CURATED", _ALL_CURATED, instead={"CURATED": "of-images"}),
            Step("ureca report CURATED", leaves=("of-images/report.html",), instead={"CURATED": "of-images"}),
        ),
    ),
    Chapter("a sample", (Step("ureca curate IMAGES OUTPUT --sample 1000", _ALL_CURATED),)),
    Chapter(
        "masks from files",
        (Step("ureca curate IMAGES OUTPUT --masks.kind annotations --listing.annotations beside", _ALL_CURATED),),
    ),
    Chapter(
        "a COCO file",
        (
            Step(
                "ureca curate IMAGES OUTPUT --masks.kind annotations --listing.annotations instances.json",
                _ALL_CURATED,
                ("OUTPUT/annotations/*.json",),
            ),
        ),
    ),
    Chapter(
        "a chat model",
        (
            Step(
                "ureca curate IMAGES OUTPUT --annotator.kind prompted --mllm.kind openai "
                "--mllm.model OpenGVLab/InternVL2_5-38B --mllm.base-urls http://localhost:8000/v1",
                says=r"of which 0 failed(?s:.*)model calls +[1-9]",
                more="--masks.kind annotations --listing.annotations beside",
            ),
        ),
    ),
    Chapter(
        "before a run",
        (
            Step("ureca plan curate IMAGES OUTPUT ...", says="3 to do"),
            Step(
                "ureca plan curate IMAGES OUTPUT ... --planning.ask-model",
                says="3 to do",
                more="--annotator.kind prompted",
            ),
        ),
    ),
    Chapter(
        "clusters",
        (
            Step("ureca curate IMAGES OUTPUT --config cluster/configs/laptop/curate.yaml", _ALL_CURATED),
            Step(
                "ureca caption CURATED OUTPUT --model CHECKPOINT --config cluster/configs/gpu-node/caption.yaml",
                r"images +3, of which 0 failed",
                ("captioned/captions/part-*.parquet",),
                instead={"OUTPUT": "captioned"},
                more=f"{_FEW_TOKENS} --resources.caption.num-gpus 0 --resources.caption.num-cpus 1",
            ),
            Step("ureca doctor", says=r"ok +Ray"),
            Step("ureca doctor s3://BUCKET/folder /data", says="s3://", instead={"/data": "data"}),
            Step("ureca doctor --no-ray --json", says=r'"name": "memory"'),
            Step("ureca status s3://BUCKET/curated --json", says=r'"num_done": 2'),
        ),
    ),
    Chapter(
        "what another run would take",
        (
            Step(
                "ureca curate SAMPLE MEASURED --config cluster.yaml",
                _ALL_CURATED,
                more="--masks.kind annotations --listing.annotations beside",
            ),
            Step(
                "ureca plan MEASURED --images 11000000 --config cluster.yaml --cpus 256 --gpus 64 --answer-s 4",
                says="images +11000000(?s:.*)saturated: ",
            ),
        ),
    ),
    Chapter(
        "scenes",
        (
            Step(
                "ureca scenes DST --images 1000 --seed 0 --split train",
                "3 images",
                ("DST/images/*.png", "DST/regions/*.parquet", "DST/captions.jsonl"),
                instead={"1000": "3"},
            ),
            Step(
                "ureca scenes DST --images 1000 --size 672x448 --processes 8",
                "3 images",
                instead={"1000": "3", "processes 8": "processes 2"},
                more="--overwrite",
            ),
        ),
    ),
    Chapter("released weights", (Step("ureca convert RELEASED CHECKPOINT", leaves=("CHECKPOINT/*.safetensors",)),)),
)
"""Some seconds each."""

LONG_CHAPTERS = (
    Chapter(
        "the model",
        (
            Step("ureca caption IMAGES OUTPUT --model CHECKPOINT", _ALL_CURATED, more=_FEW_TOKENS),
            Step(
                "ureca caption CURATED OUTPUT --model CHECKPOINT",
                _ALL_CURATED,
                instead={"OUTPUT": "captioned"},
                more=_FEW_TOKENS,
            ),
            Step("ureca train CURATED RUN --model CHECKPOINT --phase.kind align", "steps +1", _TRAINED, more=_ONE_STEP),
            Step(
                "ureca evaluate BENCHMARK OUTPUT URECA=RUN/model OpenGVLab/InternVL3-8B-hf:{none,contour,crop}",
                r"URECA(?s:.*)contour",
                ("evaluated/table.html",),
                instead={"OUTPUT": "evaluated"},
                more=_QUICK_TABLE,
            ),
            Step("ureca serve --model RUN/model", f"127.0.0.1:{PORT} serves", more=_HERE),
        ),
    ),
    Chapter(
        "training in two stages",
        (
            Step(
                "ureca train SOURCE... RUN --model CHECKPOINT --phase.kind align", "steps +1", _TRAINED, more=_ONE_STEP
            ),
            Step(
                "ureca train SOURCE... RUN2 --model RUN/model --phase.kind tune",
                "steps +1",
                ("RUN2/model/*.safetensors",),
                more=_ONE_STEP,
            ),
            Step("ureca train SOURCE... RUN --model CHECKPOINT --phase.kind align", "finished", more=_ONE_STEP),
        ),
    ),
    Chapter(
        "training from nothing",
        (Step("ureca train SOURCE... RUN --model CHECKPOINT --phase.kind full", "steps +1", _TRAINED, more=_ONE_STEP),),
    ),
    Chapter(
        "evaluation",
        (
            Step(
                "ureca evaluate test.jsonl OUTPUT URECA=runs/ureca InternVL=OpenGVLab/InternVL3-8B-hf:crop "
                "OpenGVLab/InternVL3-8B-hf:{none,contour} --bert-score.model roberta-large "
                "--resources.caption.num-gpus 1",
                "BERTScore",
                _TABLE,
                instead={"num-gpus 1": "num-gpus 0"},
                more=f"{_QUICK_TABLE} --metrics BERTScore --bert-score.layer 1",
            ),
            Step(
                "ureca evaluate test.jsonl OUTPUT runs/ureca runs/ureca:{none,contour,crop}",
                "crop",
                instead={"OUTPUT": "backbone"},
                more=_QUICK_TABLE,
            ),
            Step(
                "ureca evaluate test.jsonl OUTPUT captions/ answers.jsonl",
                "answers",
                instead={"OUTPUT": "given"},
                more=_QUICK_TABLE,
            ),
            Step(
                "ureca evaluate data/refcoco+ OUTPUT runs/ureca --refcoco.split testA",
                "testA",
                instead={"OUTPUT": "refcoco"},
                more=_QUICK_TABLE,
            ),
        ),
    ),
    Chapter(
        "what each stage does, on scenes",
        (
            Step(
                "ureca ablate-curation $S OUTPUT --listing.annotations beside --masks.kind annotations "
                "--tree.min-area-fraction 0.001 --annotator.kind oracle --annotator.folder $S --listener.kind oracle "
                "--listener.folder $S --verification.kind oracle --verification.folder $S --judge.kind oracle "
                "--judge.folder $S --judge.error-rate 0",
                "no verification",
                ("OUTPUT/ablation.md", "OUTPUT/ablation.json"),
            ),
            Step(
                "ureca ablate-curation $S OUTPUT --listing.annotations beside --masks.kind annotations "
                "--tree.min-area-fraction 0.001",
                "no verification",
                instead={"OUTPUT": "described"},
            ),
        ),
        variables={"S": "SCENES/images"},
    ),
    Chapter(
        "what each stage does, on images",
        (
            Step("ureca ablate-curation INPUT OUTPUT [every flag of ureca curate]", "no verification"),
            Step("ureca ablate-curation demo/images.txt OUTPUT", "no verification", instead={"OUTPUT": "photographs"}),
        ),
    ),
    Chapter(
        "serving",
        (
            Step("ureca serve", f"127.0.0.1:{PORT} serves the rule-based captioner", more=_HERE),
            Step(
                "ureca serve --model CHECKPOINT",
                "finishing the requests in flight",
                more=_HERE,
                meanwhile=Step(
                    "curl http://127.0.0.1:8765/v1/captions -F image=@photo.jpg "
                    """-F 'request={"regions": [{"bbox_xywh": [40, 60, 200, 120]}]}'""",
                    '"captions":',
                    instead={"8765": str(PORT)},
                ),
            ),
            Step(
                "ureca serve --model CHECKPOINT --host 0.0.0.0 --access.tokens-file tokens.txt",
                "finishing the requests in flight",
                more=_HERE,
            ),
        ),
    ),
    Chapter(
        "science",
        (
            Step(
                """ureca science OUT --models '["none", "dynamic"]' --training.budget-s 110 --metrics '[]'""",
                leaves=("OUT/*.html",),
                instead={"110": "1"},
                more=_SMALL_SCIENCE,
            ),
        ),
    ),
)
"""Up to a minute or two each."""

_VIT_H = "SAM's weights of 2.5 GB; tests/masks/generators/test_sam.py has the same code with the smallest of SAMs"
_SAM2 = "weights on the hub; tests/masks/generators/test_transformers_sam.py has the same code with tiny checkpoints"
_CLUSTER = "a cluster elsewhere; tests/jobs/test_submit.py submits every job to a head on this machine"

_VLLM = "it needs the environment of vLLM; tests/vllm runs it on a CPU"

CANNOT_RUN: Mapping[str, str] = {
    "ureca doctor --ranks 16": "sixteen GPUs; tests/ops/test_doctor.py measures two ranks on the CPU",
    "make test": "it would run these tests again",
    "ureca bench sam": "five minutes of computing; tests/masks/generators/test_sam.py compares the masks of both sides",
    ". tests/vllm/environment.sh && .venv-vllm/bin/python examples/ray_data_llm.py CHECKPOINT": "vLLM; "
    "tests/vllm/test_ray_data_llm.py runs it",
    "make demo": "it installs packages; tests/jobs/test_cli.py has its first part, the chapter 'science' its second",
    "make science": "an hour and a half of training; tests/experiments runs its steps",
    "make science-scratch": "an hour of training; the chapter 'science' has its command",
    "make science-closing": "minutes of training; tests/pipelines/test_train.py trains models of this kind",
    "make science-check": "minutes of captioning; tests/experiments checks 12 scenes",
    "make science-compare": "an hour of training; tests/experiments trains a model from a base",
    "make science-picture": "a minute of captioning; tests/experiments draws such a picture",
    "ureca science OUT --base scenes --scenes.captions shortest --training.budget-s 100": "minutes of training; "
    "tests/experiments trains a model from a base",
    "ureca science OUT": "an hour of training; the chapter 'science' has its command",
    "ureca curate IMAGES OUTPUT --masks.kind sam --masks.checkpoint sam_vit_h.pth": _VIT_H,
    "ureca curate IMAGES OUTPUT --masks.kind sam2 --masks.checkpoint facebook/sam2.1-hiera-large": _SAM2,
    "ureca caption IMAGES OUTPUT --model CHECKPOINT --masks.kind prompts --masks.network sam2 "
    "--masks.checkpoint facebook/sam2.1-hiera-large --listing.annotations beside": _SAM2,
    "ureca curate IMAGES OUTPUT --masks.kind sam3 --masks.checkpoint facebook/sam3 "
    """--masks.text '["person", "red car"]'""": _SAM2,
    "ureca serve --model CHECKPOINT --masks.kind sam --masks.checkpoint sam_vit_h.pth "
    "--resources.captioner.num-gpus 0.7 --resources.segmenter.num-gpus 0.3": _VIT_H,
    "ureca serve --model CHECKPOINT --engine vllm --resources.captioner.num-gpus 1": _VLLM,
    "vllm serve CHECKPOINT --served-model-name ureca --limit-mm-per-prompt "
    """'{"image": 1, "mask": 1, "video": 0}' --media-io-kwargs '{"image": {"image_mode": "RGBA"}}'""": _VLLM,
    "ureca caption IMAGES OUTPUT --model ureca --engine openai --base-urls http://a:8000/v1,http://b:8000/v1": _VLLM,
    **dict.fromkeys(
        (
            "pip install ureca-ray",
            "pip install 'ureca-ray[model]'",
            "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu",
        ),
        "it needs the network, and a release; tests/test_wheel.py installs the wheel",
    ),
    "ureca view OUTPUT": "it opens a browser and serves until Ctrl-C; tests/report/test_view_job.py runs it",
    "pip install 'ureca-ray[serve]'": "it needs the network, and a release; tests/test_wheel.py installs the wheel",
    "ray job submit --working-dir . -- python -m ureca.jobs.curate s3://BUCKET/images s3://BUCKET/curated "
    "--config cluster/configs/gpu-cluster/curate.yaml": _CLUSTER,
    "ray job submit --address http://HEAD:8265 --working-dir . -- python -m ureca.jobs.curate s3://BUCKET/images "
    "s3://BUCKET/curated --config cluster/configs/gpu-cluster/curate.yaml": _CLUSTER,
    "docker build -f cluster/Dockerfile -t ureca:0.1.0 --build-arg REVISION=$(git rev-parse HEAD) .": "it needs a "
    "daemon and gigabytes; tests/cluster/test_image.py reads the file",
}
"""With the reason; their arguments are parsed all the same."""
