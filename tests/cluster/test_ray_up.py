"""The cluster file of ``ray up``, validated by Ray."""

import re

from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.manifests import CLUSTER, check_command, commands_in_comments, load

FILE = CLUSTER / "ray-up.yaml"


def test_ray_up_file_is_valid() -> None:
    config = prepare_config(load(FILE))
    validate_config(config)
    assert config["docker"]["image"] == "ureca:0.1.0"
    # Ray ignores unknown keys.
    assert load(FILE).keys() <= config.keys()


def test_ray_up_workers_with_and_without_gpus_autoscale() -> None:
    config = load(FILE)
    types = config["available_node_types"]
    workers = {name: type for name, type in types.items() if name != config["head_node_type"]}
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert {bool(type["resources"].get("GPU")) for type in workers.values()} == {True, False}
    assert all(type["min_workers"] == 0 < type["max_workers"] for type in workers.values())
    assert sum(type["max_workers"] for type in workers.values()) == config["max_workers"]


def test_ray_up_comment_command_loads_its_settings() -> None:
    (command,) = commands_in_comments(FILE)
    assert check_command(command).command == "curate"


def test_ray_start_commands_use_known_options() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    config = load(FILE)
    script = re.sub(r"\\\n", " ", (CLUSTER / "slurm.sh").read_text(encoding="utf-8"))
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"], *script.splitlines()]
    starts = [command.partition("ray start ")[2] for command in commands if "ray start " in command]
    used = {option for start in starts for option in re.findall(r"(?:^|(?<=\s))--[a-z-]+", start)}
    assert len(starts) == 4
    assert {"--head", "--port", "--autoscaling-config"} <= used <= known


def test_ray_up_gpu_machines_hold_a_tuning_of_8_billion_parameters() -> None:
    memory_gb = {"g6e.12xlarge": 48, "p4de.24xlarge": 80, "p5.48xlarge": 80}  # of each GPU; tuning takes about 26
    config = load(FILE)
    gpu = config["available_node_types"]["gpu"]
    assert memory_gb[gpu["node_config"]["InstanceType"]] >= 40
    assert gpu["node_config"]["ImageId"]
    assert "--ulimit memlock=-1:-1" in config["docker"]["run_options"]
