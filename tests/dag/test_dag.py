"""What is made again after which change; that every overlay plans cleanly."""

import re
import shutil

import pytest

ENDS = {"tables", "claims", "page", "all"}


def test_a_finished_run_has_nothing_to_do(finished):
    assert finished.planned() == {}


def test_an_edit_of_a_method_reruns_its_own_jobs_and_what_follows(workflow, edit):
    edit("lib/reclaim/optim/mezo.py", lambda text: text + "\n\nEDITED = True\n")
    jobs = workflow.planned()
    assert set(jobs) == {"finetune_mezo", "measure", "evaluate"} | ENDS
    made = {
        str(path.relative_to(workflow.folder).parent)
        for path in workflow.folder.glob("results/smoke/runs/*/*/mezo.*/*")
    }
    assert {output.rsplit("/", 1)[0] for output in jobs["finetune_mezo"]} == made
    assert all("/evaluate/mezo/" in output for output in jobs["evaluate"])
    # FILM's defences train clients by MeZO.
    assert {output.split("/measure/")[1].rsplit("/", 1)[0] for output in jobs["measure"]} == {
        "mezo/memory",
        "mezo/trajectory",
        "film/defences",
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n# a comment\n",
        lambda text: text.replace('"""MeZO: fine-tuning', '"""MeZO (edited): fine-tuning', 1),
        lambda text: text.replace("\n\n\n", "\n\n\n\n", 1),
    ],
    ids=["comment", "docstring", "blank line"],
)
def test_an_edit_of_a_comment_or_docstring_reruns_nothing(workflow, edit, change):
    edit("lib/reclaim/optim/mezo.py", change)
    assert workflow.planned() == {}


def test_an_edit_of_a_script_reruns_its_jobs(workflow, edit):
    edit("scripts/measure_trajectory.py", lambda text: text + "\nDONE = 1\n")
    jobs = workflow.planned()
    assert set(jobs) == {"measure"} | ENDS
    assert jobs["measure"] == {"results/smoke/measure/mezo/trajectory/trajectory.s11"}


def test_a_new_seed_adds_only_its_own_jobs(workflow, edit):
    edit("config/smoke.yaml", lambda text: text.replace("    rates: {seeds: [101]}", "    rates: {seeds: [101, 102]}"))
    jobs = workflow.planned()
    assert set(jobs) == {"pretrain", "finetune_backprop", "evaluate"} | ENDS
    assert all(".s102" in output for rule in ("pretrain", "finetune_backprop") for output in jobs[rule])
    assert jobs["evaluate"] == {"results/smoke/evaluate/mlm_masking/rates"}


def test_a_changed_hyper_parameter_reruns_what_reads_it(workflow, edit):
    edit(
        "config/smoke.yaml",
        lambda text: text.replace("finetune-topics: {num_train_steps: 8}", "finetune-topics: {num_train_steps: 9}"),
    )
    jobs = workflow.planned()
    assert set(jobs) == {"finetune_backprop", "evaluate"} | ENDS
    assert all("/mlm_masking/" in output for rule in ("finetune_backprop", "evaluate") for output in jobs[rule])


RATES, TRAJECTORY = "evaluate/mlm_masking/rates", "measure/mezo/trajectory/trajectory.s11"


@pytest.mark.parametrize("lost", ["metrics.parquet", ""], ids=["file", "folder"])
@pytest.mark.parametrize(("rule", "folder"), [("evaluate", RATES), ("measure", TRAJECTORY)])
def test_a_deleted_metric_file_is_made_again_with_what_follows(workflow, rule, folder, lost):
    path = workflow.folder / "results/smoke" / folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    jobs = workflow.planned()
    assert set(jobs) == {rule} | ENDS
    assert jobs[rule] == {f"results/smoke/{folder}"}


def test_a_deleted_table_is_made_again_from_what_is_there(workflow):
    (workflow.folder / "results/smoke/metrics.parquet").unlink()
    assert set(workflow.planned()) == ENDS


def test_one_target_takes_only_what_it_needs(workflow):
    jobs = workflow.planned("--forceall", "results/smoke/evaluate/mlm_masking/rates")
    assert set(jobs) == {"data", "tokenizer", "pretrain", "finetune_backprop", "evaluate"}
    assert not any("polarity" in output for outputs in jobs.values() for output in outputs)


def test_until_stops_at_a_stage(workflow):
    jobs = workflow.planned("--forceall", "--until", "pretrain")
    assert set(jobs) == {"data", "tokenizer", "pmi", "pretrain"}


def test_touch_accepts_what_is_there(workflow, edit):
    edit("lib/reclaim/optim/mezo.py", lambda text: text + "\n\nEDITED = True\n")
    assert workflow.run("--touch").returncode == 0
    assert workflow.planned() == {}


@pytest.mark.parametrize("overlay", [None, "smoke", "overnight", "paper"])
def test_every_overlay_plans_from_nothing(workflow, overlay):
    jobs = workflow.planned("--forceall", overlay=overlay)
    assert {"data", "pretrain", "finetune_mezo", "finetune_backprop", "evaluate"} | ENDS <= set(jobs)


ISIC = {
    "2018": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    "2016": ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
    "2016 test": ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
}


@pytest.mark.parametrize(
    ("system", "rules"),
    [
        ("mlm_masking", {"model", "tokenizer", "pmi", "pretrain", "finetune_backprop", "evaluate"}),
        ("mezo", {"model", "prompt", "finetune_mezo", "finetune_backprop", "evaluate", "measure"}),
        ("icl", {"model", "measure"}),
        ("autoseq", {"model", "measure"}),
        ("stm_unet", {"measure"}),
        ("transformer_dr", {"measure"}),
        ("alce", {"model", "index", "measure"}),
        ("alce_asqa_vicuna", {"model", "measure"}),
        ("mezo_large_models", {"model", "prompt", "finetune_mezo", "evaluate"}),
        ("fetch_icl", {"model"}),
        ("fetch_alce_asqa_vicuna", {"model"}),
    ],
)
def test_a_system_of_the_paper_overlay_plans_alone(workflow, tmp_path, system, rules):
    for images, masks in ISIC.values():
        for name in (f"{images}/ISIC_1.jpg", f"{masks}/ISIC_1_Segmentation.png"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
    (tmp_path / "roberta-large-squad").mkdir()
    for name in ("psgs_w100.tsv", "sphere.jsonl", "roberta-large-squad/config.json"):
        (tmp_path / name).touch()
    jobs = workflow.planned(system, overlay="paper", ISIC=str(tmp_path), RECLAIM_HUB=str(tmp_path))
    assert set(jobs) == {"data", system} | rules


def test_only_an_index_with_an_encoder_asks_for_a_gpu(workflow, tmp_path):
    (tmp_path / "psgs_w100.tsv").touch()
    indexes = [f"results/paper/indexes/{name}" for name in ("wikipedia-bm25", "wikipedia-gtr")]
    result = workflow.run("--dry-run", *indexes, overlay="paper", RECLAIM_HUB=str(tmp_path))
    asked = re.findall(r"^rule index:.*?/indexes/([^,]+),.*?gpu=(\d)", result.stdout, re.MULTILINE | re.DOTALL)
    assert dict(asked) == {"wikipedia-bm25": "0", "wikipedia-gtr": "1"}, result.stdout


@pytest.mark.parametrize(
    ("overlay", "variable", "name"),
    [
        ("people", "RECLAIM_ANNOTATIONS", ""),
        ("alce-human", "RECLAIM_DATA", "alce_human_eval/human_eval_utility_completed.json"),
    ],
)
def test_the_overlays_of_peoples_judgements_plan(workflow, tmp_path, overlay, variable, name):
    path = tmp_path / (name or "judgements.json")
    path.parent.mkdir(exist_ok=True)
    path.touch()
    jobs = workflow.planned(overlay=overlay, **{variable: str(tmp_path if name else path)})
    assert set(jobs) == {"data", "measure"} | ENDS


def test_the_example_of_local_data_plans(workflow, tmp_path):
    for name in (
        "wikitext-2/valid.txt",
        "wikitext-2/test.txt",
        "sst2/train.tsv",
        "sst2/test.tsv",
        "sentence-classification/TREC.train.all",
        "sentence-classification/TREC.test.all",
        "sentence-classification/subj.all",
        "agnews/test.tsv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    jobs = workflow.planned(overlay="local-data.example", RECLAIM_DATA=str(tmp_path))
    assert {"data", "pretrain", "finetune_mezo", "finetune_backprop", "evaluate"} | ENDS <= set(jobs)
