"""The plan: what is shared, what a seed adds, how names follow from what they name."""

import copy
from pathlib import Path

import yaml

from reclaim.plan import make_plan, masking_name, measurement_jobs, measurement_parts, targets

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "config.yaml").read_text())


def with_seeds(seeds):
    config = copy.deepcopy(CONFIG)
    config["experiments"]["mlm_masking"]["rates"]["seeds"] = seeds
    return make_plan(config)


def test_a_new_seed_adds_only_its_own_checkpoints_and_jobs():
    before, after = with_seeds([1, 2]), with_seeds([1, 2, 3])
    for table in ("checkpoints", "jobs"):
        old, new = getattr(before, table), getattr(after, table)
        assert all(new[name] == spec for name, spec in old.items())
        added = set(new) - set(old)
        assert added and all(name.endswith(".s3") for name in added)


def test_experiments_share_a_checkpoint_of_equal_spec():
    plan = make_plan({**CONFIG, "run": ["mezo/methods", "mezo/estimators"]})
    methods = set(plan.evaluations["mezo/methods"]["checkpoints"])
    estimators = set(plan.evaluations["mezo/estimators"]["checkpoints"])
    assert estimators < methods and len(plan.checkpoints) == len(methods)


def test_run_chooses_what_is_made():
    config = {**CONFIG, "run": ["mezo/methods"]}
    plan = make_plan(config)
    assert list(plan.evaluations) == ["mezo/methods"]
    assert not any(name.startswith("idioms") for name in plan.checkpoints)


def test_every_arm_of_every_seed_has_a_job():
    plan = make_plan(CONFIG)
    experiment = CONFIG["experiments"]["mlm_masking"]["rates"]
    arms = [arm for name in plan.evaluations["mlm_masking/rates"]["jobs"] for arm in plan.jobs[name]["arms"]]
    assert len(arms) == len(experiment["seeds"]) * len(experiment["checkpoints"][0]["masking"])
    per_arm = make_plan({**CONFIG, "jobs": "per_arm"})
    assert all(len(job["arms"]) == 1 for job in per_arm.jobs.values())
    assert sum(len(job["arms"]) for job in plan.jobs.values()) == len(per_arm.jobs)


def test_masking_names_differ_where_the_masking_does():
    maskings = [
        {"scheme": "none"},
        {"scheme": "uniform", "corruption": 0.4},
        {"scheme": "uniform", "corruption": 0.401},
        {"scheme": "uniform", "corruption": 0.4, "prediction": 0.2},
        {"scheme": "uniform", "corruption": 0.4, "replacement": "80-10-10"},
        {"scheme": "uniform", "corruption": 0.4, "replacement": [0.875, 0.125, 0.0]},
        {"scheme": "span", "corruption": 0.4},
    ]
    assert len({masking_name(masking) for masking in maskings}) == len(maskings)


def test_an_overlay_can_drop_the_reference_losses():
    config = copy.deepcopy(CONFIG)
    config["experiments"]["mlm_masking"]["rates"]["reference_loss"] = None
    assert make_plan(config).evaluations["mlm_masking/rates"]["reference_loss"] == {}


def test_each_iteration_is_a_job_and_what_an_experiment_needs_is_made():
    config = copy.deepcopy(CONFIG)
    config["data"]["passages"] = {}
    config["indexes"] = {"by-words": {"data": "passages", "model": "encoder"}}
    needs = {"models": ["judge"], "indexes": ["by-words"]}
    config["experiments"]["mezo"]["rounds"] = {"kind": "x", "seeds": [3, 4], "iterations": 2, "needs": needs}
    plan = make_plan({**config, "run": ["mezo/rounds", "mezo/trajectory"]})
    jobs = [f"{chosen}/{kind}.{name}" for chosen, kind, name in measurement_jobs(plan)]
    assert jobs[:4] == [f"mezo/rounds/x.s{seed}.i{iteration}" for seed in (3, 4) for iteration in (0, 1)]
    assert all(job.startswith("mezo/trajectory/trajectory.s") and ".i" not in job for job in jobs[4:])
    assert (plan.indexes, plan.models, plan.data) == (["by-words"], ["encoder", "judge"], ["passages"])


def test_each_part_is_a_job_that_needs_what_it_names():
    experiment = {
        "kind": "x",
        "seeds": [3, 4],
        "job_per": "models",
        "data": ["reviews", "news"],
        "data_sets": {"reviews": {"data": "reviews"}, "news": {"data": "news"}},
        "needs": {"models": ["small-1.5b", "large", "judge"]},
        "models": {"small-1.5b": {"size": "smallest"}, "large": {"size": "largest"}},
    }
    parts = measurement_parts(experiment)
    assert list(parts) == ["-small-1.5b", "-large"]
    assert parts["-large"]["models"] == {"large": {"size": "largest"}}
    assert parts["-large"]["needs"] == {"models": ["large", "judge"]}
    assert parts["-large"]["data"] == ["reviews", "news"]
    by_task = {
        **experiment,
        "job_per": "tasks",
        "tasks": [{"name": "a", "data": "news"}, {"name": "b", "data": "reviews"}],
    }
    del by_task["data_sets"]
    assert [spec["data"] for spec in measurement_parts(by_task).values()] == [["news"], ["reviews"]]
    config = copy.deepcopy(CONFIG)
    config["experiments"]["mezo"]["rounds"] = experiment
    jobs = [f"{kind}.{name}" for _, kind, name in measurement_jobs(make_plan(config, ["mezo/rounds"]))]
    assert jobs == [f"x.s{seed}-{model}" for seed in (3, 4) for model in ("small-1.5b", "large")]


def test_a_seed_is_no_part_of_what_another_job_runs():
    experiment = CONFIG["experiments"]["icl"]["settings"]
    more = {**experiment, "seeds": [*experiment["seeds"], 999]}
    assert measurement_parts(experiment) == measurement_parts(more)


def test_targets_are_systems_and_experiments():
    config = {"run": ["mezo/methods", "icl/opt", "mezo/causal"], "on_request": ["mezo/large", "stm_unet/isic"]}
    found = targets(config)
    assert found["mezo"] == ["mezo/methods", "mezo/causal"] and found["stm_unet"] == ["stm_unet/isic"]
    assert found["mezo_large"] == ["mezo/large"] and found["icl_opt"] == ["icl/opt"]
    assert len(found) == 3 + 5
