"""claims.yaml against the configurations: experiments that claims name exist, and those of images pair at paper scale."""

from pathlib import Path

import numpy as np
import yaml

import hub_copies
from reclaim import tables
from reclaim.claims import decide, load_claims
from reclaim.claims_sides import as_list

ROOT = Path(__file__).parents[2]


def load():
    return load_claims(ROOT / "claims.yaml", ROOT / "schemas" / "claims.schema.json")


def of(paper):
    return [claim for claim in load() if claim.paper == paper]


def test_every_experiment_that_a_claim_names_is_one_of_a_configuration():
    known = set()
    for path in (ROOT / "config.yaml", *(ROOT / "config").rglob("*.yaml")):
        for paper, experiments in (yaml.safe_load(path.read_text()).get("experiments") or {}).items():
            known |= {(paper, name) for name in experiments}
    for claim in load():
        for check in (claim, *claim.gates, *claim.guards, *claim.warnings):
            for name in as_list(check.experiment or []):
                assert (claim.paper, name) in known, f"{claim.paper} {claim.claim}: {name}"


def paper_rows(paper, arms):
    """Made-up rows of experiments of the paper overlay. arms: experiment -> [(variant, metric, mean)]; 20 items each."""
    rng, metrics, items, seeds = np.random.default_rng(0), [], [], {}
    for experiment, found in arms.items():
        seeds[paper, experiment] = hub_copies.overlay()["experiments"][paper][experiment]["seeds"]
        for seed in seeds[paper, experiment]:
            for variant, metric, mean in found:
                key = {"paper": paper, "experiment": experiment, "variant": variant, "seed": seed, "metric": metric}
                values = mean + rng.normal(0, 0.01, 20)
                exact = mean if metric in ("parameters", "macs") else values.mean()
                metrics.append({**key, "value": float(exact), "n": 20, "unit": "1"})
                items += [{**key, "item": str(item), "value": float(value)} for item, value in enumerate(values)]
    return tables.frame(metrics, "metrics"), tables.frame(items, "items"), None, seeds


def test_networks_for_segmentation_are_compared_on_the_papers_sets():
    arms = {}
    for name in ("isic", "isic_older"):
        spec = hub_copies.overlay()["experiments"]["stm_unet"][name]
        here = {"data": spec["data"], "test": spec["data"]}
        variants = [({"model": arm, **here}, 0.8) for arm in spec["arms"]]
        variants += [({"control": control, **here}, 0.3) for control in ("otsu", "otsu_largest", "position")]
        arms[name] = [(variant, metric, mean) for variant, mean in variants for metric in ("iou", "dice")]
        counted = [{"model": model, "sizes": "paper", "image_size": 256} for model in spec["complexity"]["models"]]
        arms[name] += [(variant, metric, 1e6) for variant in counted for metric in ("parameters", "macs")]
    result = decide(of("stm_unet"), *paper_rows("stm_unet", arms)).set_index("claim")
    assert set(result.index[result["verdict"] == "not_testable"]) == {"C3b", "N1"}  # of the generated lesions
    assert not (result["verdict"] == "invalid").any(), result["reason"].to_dict()
    assert "isic2016" in result.loc["C1a", "rows"] and "isic2018" in result.loc["C1a", "rows"]


def test_faces_of_every_set_count():
    arms = {}
    for name, data, ours in (("recognition", "orl", 0.9), ("recognition_yale", "yale", 0.7)):
        means = {"transformer_dr": ours, **dict.fromkeys(("plain_ae", "pca", "lpp", "npe"), 0.8)}
        variants = [({"method": method, "dimension": "chosen"}, mean) for method, mean in means.items()]
        variants += [({"method": "raw", "dimension": "pixels"}, 0.8)]
        shared = [{"data": data, "training_images": count} for count in (2, 3)]
        arms[name] = [({**variant, **keys}, "knn1", mean) for variant, mean in variants for keys in shared]
    result = decide(of("transformer_dr"), *paper_rows("transformer_dr", arms)).set_index("claim")
    decided = result.loc[["D3a", "D3b", "D3c"]]
    assert set(decided["verdict"]) <= {"supported", "inconclusive"}, decided["reason"].to_dict()
    assert decided["estimate"].abs().max() < 0.01, "better on one set and worse on the other"
