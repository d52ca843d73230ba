"""The chain on a real SLURM: one run (`story` in conftest.py) in which jobs, slurmd and Snakemake itself are killed."""

from __future__ import annotations

from slurm.conftest import BACKPROP, MEZO, PAIR, TABLES


def _asked(job: dict[str, str]) -> tuple[int, int]:
    """Memory (MB) and time (minutes) that a job asked for."""
    memory = next(each for each in job["TRES"].split(",") if each.startswith("mem="))
    hours, minutes, _ = map(int, job["TimeLimit"].split(":"))
    return int(memory[len("mem=") :].rstrip("M")), 60 * hours + minutes


def test_the_tables_equal_those_of_a_local_run(story):
    for name in ("metrics", "items", "curves"):
        path = f"results/chain/{name}.parquet"
        assert (story.folder / path).read_bytes() == (story.reference / path).read_bytes(), name
    assert len({event["output"] for event in story.events}) == 19 and TABLES in {e["output"] for e in story.events}


def test_each_job_of_a_gpu_rule_sees_one_device_and_no_other_job_any(story):
    begun = [event for event in story.events if event["what"] == "begin"]
    assert {event["rule"] for event in begun if event["gpu"]} == {"finetune_backprop", "finetune_mezo", "prompt"}
    for event in begun:
        asked = story.jobs[event["job"]].get("TresPerJob", "")
        assert (asked == "gres:gpu:1") == bool(event["gpu"]), asked
        assert event["devices"] in (("0", "1") if event["gpu"] else ("",)), event


def test_two_gpu_jobs_run_at_once_on_different_devices(story):
    held = {name: next(e for e in story.events if e["what"] == "held" and name in e["output"]) for name in PAIR}
    assert {event["devices"] for event in held.values()} == {"0", "1"}


def test_small_jobs_share_one_slurm_job(story):
    assert len({event["job"] for event in story.events if event["rule"] in ("data", "tokenizer")}) == 1


def test_a_cancelled_job_is_retried_and_resumes(story):
    first, second = story.attempts("uniform-0.15")
    assert (first["JobState"], second["JobState"]) == ("CANCELLED", "COMPLETED")
    assert _asked(first) == (1500, 20) and _asked(second) == (3000, 40)
    assert "resumed at step" in story.logs("uniform-0.15")


def test_a_job_out_of_time_is_retried_with_more_and_resumes(story):
    first, second = story.attempts("uniform-0.4")
    assert (first["JobState"], second["JobState"]) == ("TIMEOUT", "COMPLETED")
    assert _asked(second) == (3000, 40)
    assert "resumed at step" in story.logs("uniform-0.4")


def test_a_job_out_of_memory_is_retried_with_more_and_resumes(story):
    first, second = story.attempts("uniform-0.8")
    assert first["JobState"] in ("FAILED", "CANCELLED", "OUT_OF_MEMORY") and second["JobState"] == "COMPLETED"
    assert _asked(first) == (1500, 20) and _asked(second) == (3000, 40)
    assert "resumed at step" in story.logs("uniform-0.8")


def test_a_job_that_ends_while_slurmd_is_away_is_not_lost(story):
    (only,) = story.attempts("uniform-0.3")
    assert only["JobState"] == "COMPLETED"


def test_a_preempted_job_goes_back_into_the_queue_and_resumes(story):
    first, second = story.attempts(BACKPROP)
    assert first["JobId"] == second["JobId"], "SLURM put it back, and Snakemake did not submit it again"
    assert (first["Partition"], first["Restarts"], first["JobState"]) == ("spare", "1", "COMPLETED")
    assert _asked(first) == (1500, 20)
    assert "resumed at step" in story.logs(BACKPROP)


def test_a_killed_snakemake_goes_on_where_it_was(story):
    first, second = story.attempts(MEZO)
    assert (first["JobState"], second["JobState"]) == ("CANCELLED", "COMPLETED")
    assert "resumed at step" in story.logs(MEZO)
    assert "cancelled what an earlier run left" in story.output
    for name in ("uniform-0.15", "uniform-0.4", "uniform-0.8"):
        assert len(story.attempts(name)) == 2, "made again although it was finished"
