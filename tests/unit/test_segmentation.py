import json

import numpy as np
import pytest
import torch
from PIL import Image

from reclaim.data import load_info
from reclaim.errors import InputError
from reclaim.metrics.segmentation import iou, overlap
from reclaim.outcome import read_outcomes, write_outcome
from reclaim.report import figures_stm_unet
from reclaim.report.system import SystemTables
from reclaim.tables import read
from reclaim.train import Recipe
from reclaim.vision.baselines import build_model
from reclaim.vision.images import ImageSet, encode_png, load_images, otsu_masks, read_mask
from reclaim.vision.segmentation import EpochChoice, run, usual_mask
from reclaim.vision.segmentation_data import check_spec, materialize
from reclaim.vision.segmenter import Augmentation, bce_dice_loss, fit, initialize, normalize, predict, score
from reclaim.world.lesions import draw_lesions

NETWORK = {"stm_unet": {"widths": [4, 8, 10, 12, 16], "num_heads": [1, 1, 2, 2], "window_size": 4, "first_pool": False}}
RECIPE = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 2e-3}
LESIONS = {"kind": "segmentation", "source": "world", "generator": "lesions", "seed": 3}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lesions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    spec = {**LESIONS, "parameters": {"side": 32}}
    materialize({**spec, "splits": {"train": 12, "dev": 3, "test": 5}}, folder / "lesions")
    plain = {**spec, "parameters": {"side": 32, "max_distractors": 0}}
    materialize({**plain, "splits": {"test": 5}}, folder / "plain")
    return {"lesions": folder / "lesions", "plain": folder / "plain"}


@pytest.fixture
def spec():
    return {
        "kind": "segmentation",
        "data": "lesions",
        "test": ["lesions", "plain"],
        "image_size": 32,
        "train_size": 8,
        "arms": ["full", "unext"],
        "network": NETWORK,
        "recipe": RECIPE,
        "augmentation": {"rotate90": 1.0, "flip": 0.5},
        "pictures": 2,
    }


def small_set(count: int = 8, side: int = 32) -> ImageSet:
    drawn = draw_lesions(count, 0, side=side)
    return ImageSet([str(row) for row in range(count)], drawn.images, drawn.masks)


def small_model(name: str = "full", seed: int = 0) -> torch.nn.Module:
    model = build_model(name, 32, NETWORK)
    initialize(model, seed)
    return model


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ------------------------------------------------------------------------------------------------ loss and pairing


def test_loss_by_hand():
    logits, targets = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    targets[0] = 1.0
    bce, dice_terms = np.log(2), (1 - 4 / 6, 1 - 0 / 2)
    assert bce_dice_loss(logits, targets).item() == pytest.approx(0.5 * bce + np.mean(dice_terms), abs=1e-4)


def test_shared_layers_start_equal_whatever_else_a_model_has():
    full, without, other = small_model("full", 7), small_model("no_swin", 7), small_model("no_swin", 8)
    shared = weights(without)
    assert all(torch.equal(value, shared[name]) for name, value in weights(full).items() if name in shared)
    assert not torch.equal(shared["decoder1.weight"], weights(other)["decoder1.weight"])


def test_building_and_initializing_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    small_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_spreads():
    model = build_model("full", 64, {})
    initialize(model, 0)
    assert model.block1[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.skips["3"][0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.patch_embed4.proj.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
    assert model.block1[0].mlp.dwconv.dwconv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert model.decoder1.weight.abs().max().item() <= 1 / (9 * 256) ** 0.5
    assert model.block2[0].fc_in.bias.abs().max() == 0 and model.decoder1.bias.abs().max() > 0


# ------------------------------------------------------------------------------------------------ batches


def test_turns_and_flips_keep_image_and_mask_together():
    data = small_set(6)
    marked = data.images.copy()
    marked[data.masks] = 255
    marked[~data.masks] = 0
    turn = Augmentation(rotate90=1.0, flip=1.0)
    images, masks = turn(torch.from_numpy(marked), torch.from_numpy(data.masks), np.random.default_rng(0))
    assert torch.equal(images[..., 0] == 255, masks) and not np.array_equal(masks.numpy(), data.masks)
    assert masks.sum(dim=(1, 2)).tolist() == data.masks.sum(axis=(1, 2)).tolist()


def test_oblong_images_are_flipped_and_not_turned():
    images, masks = torch.zeros(2, 4, 6, 3, dtype=torch.uint8), torch.zeros(2, 4, 6, dtype=torch.bool)
    flipped, _ = Augmentation(rotate90=0.0, flip=1.0)(images, masks, np.random.default_rng(0))
    assert flipped.shape == images.shape
    with pytest.raises(InputError, match="rotate90.*4 x 6"):
        Augmentation(rotate90=0.5)(images, masks, np.random.default_rng(0))


def test_normalization_and_the_double_one_of_the_code():
    images = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    images[..., 0] = 255  # red
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    ours = normalize(images)[0, :, 0, 0].numpy()
    assert ours == pytest.approx((np.array([1, 0, 0]) - mean) / std, abs=1e-5)
    theirs = normalize(images, unext_compat=True)[0, :, 0, 0].numpy()
    assert theirs == pytest.approx((np.array([0, 0, 1]) - mean) / std / 255, abs=1e-6)


def test_models_see_the_same_batches_and_training_repeats():
    seen = {}
    for name in ("full", "unext", "unext"):
        model, inputs = small_model(name), []
        model.register_forward_pre_hook(lambda module, x, inputs=inputs: inputs.append(x[0].clone()))
        recipe = Recipe(num_train_steps=3, per_device_train_batch_size=4)
        history = fit(model, small_set(), recipe, seed=5, augmentation=Augmentation(), crop_size=None)
        seen.setdefault(name, []).append((inputs, history.loss, weights(model)))
    for full, plain in zip(seen["full"][0][0], seen["unext"][0][0], strict=True):
        assert torch.equal(full, plain)
    (_, first, state), (_, second, again) = seen["unext"]
    assert first == second and equal(state, again)


def test_crops_are_cut_at_the_same_place_of_image_and_mask():
    data, shapes = small_set(4, side=64), []
    model = small_model()
    model.register_forward_pre_hook(lambda module, x: shapes.append(tuple(x[0].shape)))
    fit(model, data, Recipe(num_train_steps=1, per_device_train_batch_size=4), seed=0, crop_size=32)
    assert shapes == [(4, 3, 32, 32)]
    with pytest.raises(InputError, match="crop_size"):
        fit(model, data, Recipe(num_train_steps=1, per_device_train_batch_size=4), seed=0, crop_size=96)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    """With the running statistics of batch normalisation, which a resumed run must not start anew."""

    def interrupted(steps):
        for step in steps:
            if step == 3:
                raise KeyboardInterrupt
            yield step

    recipe = Recipe(num_train_steps=5, per_device_train_batch_size=4)
    whole = small_model()
    expected = fit(whole, small_set(), recipe, seed=1)
    options = {"state_path": tmp_path / "state.pt", "save_seconds": 0.0, "run": "same"}
    with pytest.raises(KeyboardInterrupt):
        fit(small_model(), small_set(), recipe, seed=1, progress=interrupted, **options)
    resumed, steps = small_model(), []
    found = fit(resumed, small_set(), recipe, seed=1, after_step=steps.append, **options)
    assert steps == [4, 5]
    assert found.loss == expected.loss
    assert equal(weights(resumed), weights(whole))


def test_training_segments():
    train, test = small_set(16), draw_lesions(8, 1, "test", side=32)
    model = build_model("unext", 32, {"stm_unet": {"widths": (8, 16, 16, 24, 32), "first_pool": False}})
    initialize(model, 0)
    before = iou(overlap(predict(model, test.images)[:, 0] > 0.5, test.masks)).mean()
    fit(model, train, Recipe(num_train_steps=60, per_device_train_batch_size=8, learning_rate=1e-2), seed=0)
    after = iou(overlap(predict(model, test.images)[:, 0] > 0.5, test.masks)).mean()
    assert after > 0.35 and after > before + 0.1


# ------------------------------------------------------------------------------------------------ scores


def test_logits_of_zero_are_background():
    data = small_set(2)
    p = torch.zeros(2, 32, 32).sigmoid().numpy()
    assert score(p, data).predicted.tolist() == [0, 0]


def test_scores_at_the_size_of_the_file():
    mask = np.zeros((100, 60), dtype=bool)
    mask[20:80, 10:40] = True
    small = np.asarray(Image.fromarray(mask).resize((32, 32), Image.Resampling.NEAREST))
    data = ImageSet(["a"], np.zeros((1, 32, 32, 3), np.uint8), small[None], [mask])
    counts = score(small[None].astype(np.float32), data)
    assert counts.target.tolist() == [mask.sum()] and iou(counts)[0] > 0.9


def test_usual_mask():
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[:, :2] = True
    masks[0, 3] = True
    assert np.array_equal(usual_mask(masks), masks[1])


# ------------------------------------------------------------------------------------------------ an experiment


def test_run_gives_paired_rows(lesions, spec, tmp_path):
    outcome = run(spec, 0, data=lesions, device="cpu", state_dir=tmp_path / "state")
    key = {"paper": "stm_unet", "experiment": "lesions", "seed": 0}
    write_outcome(outcome, tmp_path / "out", **key)
    items = read(tmp_path / "out" / "items.parquet", "items")
    metrics = read(tmp_path / "out" / "metrics.parquet", "metrics")
    variants = {text: json.loads(text) for text in metrics["variant"]}
    for model in ("full", "unext"):
        for test in ("lesions", "plain"):
            (variant,) = [v for v, keys in variants.items() if keys.get("model") == model and keys.get("test") == test]
            rows = items[(items["variant"] == variant) & (items["metric"] == "iou")]
            assert len(rows) == 5
            (mean,) = metrics[(metrics["variant"] == variant) & (metrics["metric"] == "iou")]["value"]
            assert mean == pytest.approx(rows["value"].mean())
    counted = metrics[metrics["metric"].isin(["parameters", "macs"])]
    assert len(counted) == 4 and (counted["value"] > 0).all()
    assert {keys["control"] for keys in variants.values() if "control" in keys} == {"otsu", "otsu_largest", "position"}
    names = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    expected = {f"{model}-test-{number}.png" for model in ("full", "unext") for number in (0, 1)}
    assert names == {*expected, "panel.png"}
    with Image.open(tmp_path / "out" / "pictures" / "panel.png") as panel:
        assert panel.size == (4 * 34, 2 * 34)
    assert {row["measure"] for row in outcome["curves"]} == {"train_loss"} and len(outcome["curves"]) == 4
    frames = [read_outcomes([tmp_path / "out"], kind) for kind in ("metrics", "costs", "curves")]
    shown = {exhibit.key: exhibit for exhibit in figures_stm_unet.exhibits(SystemTables(frames[0][:0], *frames))}
    assert list(shown) == ["iou-lesions", "differences-lesions", "distractors", "complexity", "learning", "pictures"]
    assert [key for key, exhibit in shown.items() if exhibit.missing] == ["distractors", "pictures"]
    (row,) = [row for row in shown["complexity"].rows if row[0] == "UNeXt"]
    (score,) = [row for row in shown["iou-lesions"].rows if row[0] == "UNeXt"]
    assert row[shown["complexity"].columns.index("test IoU (%)")] == score[1]
    own = [frame.assign(experiment="moles") for frame in frames]
    keys = [exhibit.key for exhibit in figures_stm_unet.exhibits(SystemTables(own[0][:0], *own))]
    assert keys[:2] == ["iou-moles", "differences-moles"], "an experiment of the user's own is shown"
    svg, letters = figures_stm_unet.panel_svg(outcome["pictures"]["panel.png"])
    assert letters == [("A", "STM-UNet"), ("B", "UNeXt")] and svg.count("<text") == 4


def test_run_is_a_function_of_its_arguments(lesions, spec, tmp_path):
    torch.manual_seed(1)
    np.random.seed(1)
    first = run(spec, 0, data=lesions, device="cpu", state_dir=tmp_path / "a")
    torch.manual_seed(2)
    np.random.seed(2)
    spec["arms"] = ["unext", "full"]  # an arm does not depend on those before it
    second = run(spec, 0, data=lesions, device="cpu", state_dir=tmp_path / "b")
    order = {json.dumps([row["variant"], row["metric"]]): row["value"] for row in second["metrics"]}
    assert {json.dumps([row["variant"], row["metric"]]): row["value"] for row in first["metrics"]} == order


def test_finished_arms_are_kept_and_foreign_ones_are_not(lesions, spec, tmp_path):
    runs = []

    def counting(steps):
        runs.append(len(steps))
        if len(runs) == 2:
            raise KeyboardInterrupt
        return iter(steps)

    with pytest.raises(KeyboardInterrupt):
        run(spec, 0, data=lesions, device="cpu", state_dir=tmp_path, progress=counting)
    resumed = run(spec, 0, data=lesions, device="cpu", state_dir=tmp_path, progress=counting)
    assert runs == [4, 4, 4], "the first arm is trained once, the second one again"
    fresh = run(spec, 0, data=lesions, device="cpu", state_dir=tmp_path / "other")
    assert resumed["metrics"] == fresh["metrics"]
    run(spec, 1, data=lesions, device="cpu", state_dir=tmp_path, progress=counting)
    assert len(runs) == 5, "another seed starts anew"


def members(outcome, split: str) -> set[str]:
    return {row["item"] for row in outcome["items"] if row["variant"].get("split") == split}


def test_the_epoch_is_chosen_on_dev_images_only(lesions, spec, tmp_path):
    chosen = {**spec, "selection": "best_dev", "recipe": {**RECIPE, "num_train_epochs": 4}, "arms": ["unext"]}
    outcome = run(chosen, 0, data=lesions, device="cpu", state_dir=tmp_path / "a")
    train, dev = members(outcome, "train"), members(outcome, "dev")
    test = {row["item"] for row in outcome["items"] if row["metric"] == "iou"}
    assert len(train) == 8 and len(dev) == 3 and len(test) == 5
    assert not train & dev and not train & test and not dev & test
    scores = [row["value"] for row in outcome["curves"] if row["measure"] == "dev_iou"]
    assert len(scores) == 4
    assert (tmp_path / "a" / "unext.all" / "best.safetensors").exists()
    # Choosing on the test images is possible, and leaves its mark in the record.
    leaky = run({**chosen, "selection": "best_test"}, 0, data=lesions, device="cpu", state_dir=tmp_path / "b")
    assert members(leaky, "dev") == test


def test_the_best_weights_come_back_and_not_the_last(tmp_path):
    model, dev = small_model(), small_set(3)
    choice = EpochChoice(model, dev, tmp_path, "same run", {}, every=2)
    for step, bias in ((2, -50.0), (3, 50.0), (4, 50.0), (6, -50.0)):  # all background, all foreground, ...
        torch.nn.init.constant_(model.final.bias, bias)
        choice.after(step, last=6)
    assert list(choice.scores) == ["2", "4", "6"] and choice.scores["4"] > choice.scores["6"]
    resumed = EpochChoice(model, dev, tmp_path, "same run", {}, every=2)
    assert resumed.scores == choice.scores
    resumed.restore()
    assert model.final.bias.item() == 50.0
    assert EpochChoice(model, dev, tmp_path, "another run", {}, every=2).scores == {}


def test_cross_validation_scores_every_image_once(lesions, spec, tmp_path):
    for key in ("test", "train_size"):
        spec.pop(key)
    folded = {**spec, "folds": 3, "arms": ["unext"], "recipe": {**RECIPE, "num_train_epochs": 1}}
    outcome = run(folded, 0, data=lesions, device="cpu", state_dir=tmp_path)
    scored = [r["item"] for r in outcome["items"] if r["metric"] == "iou" and r["variant"].get("model") == "unext"]
    assert len(scored) == len(set(scored)) == 12
    for fold in range(3):
        rows = [r for r in outcome["items"] if r["variant"].get("part") == f"fold{fold}"]
        assert len(rows) == 8
    with pytest.raises(InputError, match="folds"):
        run({**folded, "folds": 40}, 0, data=lesions, device="cpu", state_dir=tmp_path)


def test_shuffled_masks_train_on_other_images_masks(lesions, spec, tmp_path):
    arms = ["unext", {"name": "null", "model": "unext", "masks": "shuffled"}]
    outcome = run({**spec, "arms": arms}, 0, data=lesions, device="cpu", state_dir=tmp_path)
    losses = {
        name: [row["value"] for row in outcome["curves"] if row["variant"]["model"] == name]
        for name in ("unext", "null")
    }
    assert losses["unext"] != losses["null"]


def test_complexity_at_the_papers_sizes(lesions, spec, tmp_path):
    asked = {**spec, "arms": ["unext"], "complexity": {"image_size": 256, "models": ["full", "unext", "unet"]}}
    outcome = run(asked, 0, data=lesions, device="cpu", state_dir=tmp_path)
    found = {
        row["variant"]["model"]: int(row["value"])
        for row in outcome["metrics"]
        if row["variant"].get("sizes") == "paper" and row["metric"] == "parameters"
    }
    assert found == {"full": 2_463_657, "unext": 1_471_921, "unet": 31_037_633}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"selection": "best"}, "selection"),
        ({"train_size": 99}, "train_size"),
        ({"image_size": 40}, "multiples of 16"),
        ({"arms": [{"model": "unext", "masks": "random"}]}, "masks"),
        ({"arms": ["fulll"]}, "fulll"),
        ({"recipe": {**RECIPE, "batch": 3}}, "batch"),
    ],
)
def test_a_spec_that_does_not_fit(lesions, spec, tmp_path, change, word):
    with pytest.raises(InputError, match=word):
        run({**spec, **change}, 0, data=lesions, device="cpu", state_dir=tmp_path)


# ------------------------------------------------------------------------------------------------ image files


def write_pair(images, masks, stem: str, mask_stem: str, side: int = 20, value: int = 0, suffix: str = ".png"):
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((side, side + 4), np.uint8)
    mask[: side // 2] = 255
    colour = np.full((side, side + 4, 3), value, np.uint8)
    colour[: side // 2] = 200
    Image.fromarray(colour).save(images / f"{stem}{suffix}")
    Image.fromarray(mask).save(masks / f"{mask_stem}.png")


def local(folder, form="image_mask", **more):
    return {"kind": "segmentation", "source": "local", "format": form, "files": {"train": str(folder)}, **more}


def test_official_isic_layouts(tmp_path):
    root = tmp_path / "isic"
    for value, (part, ground) in enumerate(
        (("Training_Input", "Training_GroundTruth"), ("Test_Input", "Test_GroundTruth"))
    ):
        for number in (2, 1):
            stem = f"ISIC_000000{number}"
            images, masks = root / f"ISIC2018_Task1-2_{part}", root / f"ISIC2018_Task1_{ground}"
            write_pair(images, masks, stem, f"{stem}_segmentation", value=60 * value + number, suffix=".jpg")
            (images / "LICENSE.txt").write_text("CC-0")
            Image.new("RGB", (4, 4)).save(images / f"{stem}_superpixels.png")
    spec = {**local(root, "isic2018"), "files": {"train": str(root), "test": str(root)}}
    materialize(spec, tmp_path / "out")
    assert load_images(tmp_path / "out", "train").ids == ["ISIC_0000001", "ISIC_0000002"]
    test = load_images(tmp_path / "out", "test", image_size=16, keep_full=True)
    assert test.images.shape == (2, 16, 16, 3) and test.masks[0].mean() == 0.5 and test.full_masks[0].shape == (20, 24)
    stem = "ISIC_0000009"
    old = tmp_path / "old"
    write_pair(
        old / "ISBI2016_ISIC_Part1_Training_Data",
        old / "ISBI2016_ISIC_Part1_Training_GroundTruth",
        stem,
        f"{stem}_Segmentation",
    )
    materialize(local(old, "isic2016"), tmp_path / "out16")
    assert load_images(tmp_path / "out16", "train").ids == [stem]
    with pytest.raises(InputError, match="ISBI2016_ISIC_Part1_Training_Data"):
        materialize(local(root, "isic2016"), tmp_path / "none")


def test_pairs_of_folders_split_inverted_and_shrunk(tmp_path):
    for number in range(10):
        write_pair(tmp_path / "d" / "image", tmp_path / "d" / "label", str(number), str(number), value=number)
    spec = local(tmp_path / "d", images="image", masks="label", invert=True, max_side=12)
    materialize({**spec, "split": {"dev": 0.2, "test": 0.3, "seed": 1}}, tmp_path / "out")
    info = load_info(tmp_path / "out")
    assert info["rows"] == {"test": 3, "dev": 2, "train": 5} and len(info["source"]["files"]) == 20
    ids = [load_images(tmp_path / "out", split).ids for split in ("train", "dev", "test")]
    assert sorted(sum(ids, [])) == [str(number) for number in range(10)]
    train = load_images(tmp_path / "out", "train")
    assert train.images.shape == (5, 10, 12, 3)
    assert not train.masks[:, :5].any() and train.masks[:, 5:].all()


def test_an_image_in_two_splits_is_left_out_of_train(tmp_path):
    for split, numbers in (("train", (1, 2, 3)), ("test", (3, 4))):
        for number in numbers:
            folder = tmp_path / split
            write_pair(folder / "images", folder / "masks", f"{split}{number}", f"{split}{number}", value=number)
    spec = {**local(""), "files": {split: str(tmp_path / split) for split in ("train", "test")}}
    materialize(spec, tmp_path / "out")
    assert load_images(tmp_path / "out", "train").ids == ["train1", "train2"]
    assert load_info(tmp_path / "out")["shared_between_splits"] == {"test": 0, "train": 1}


def test_ids_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 2):
        write_pair(tmp_path / "d" / "images", tmp_path / "d" / "masks", str(number), str(number), value=number)
    materialize(local(tmp_path / "d"), tmp_path / "out")
    assert load_images(tmp_path / "out", "train").ids == ["2", "9", "10"]


@pytest.mark.parametrize("fault", ["no mask", "no image", "size", "damaged", "colour", "several"])
def test_files_that_do_not_pair(tmp_path, fault):
    images, masks = tmp_path / "d" / "images", tmp_path / "d" / "masks"
    write_pair(images, masks, "a", "a")
    write_pair(images, masks, "b", "b_mask")
    if fault == "no mask":
        (masks / "a.png").unlink()
    elif fault == "no image":
        (images / "a.png").unlink()
    elif fault == "size":
        Image.new("L", (5, 5)).save(masks / "a.png")
    elif fault == "damaged":
        (images / "a.png").write_bytes((images / "a.png").read_bytes()[:60])
    elif fault == "colour":
        Image.new("RGB", (24, 20), (255, 0, 0)).save(masks / "a.png")
    else:
        Image.new("L", (24, 20)).save(masks / "a_segmentation.png")
    with pytest.raises(InputError, match="a"):
        materialize(local(tmp_path / "d"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_of_zeros_and_ones_and_of_sixteen_bits():
    values = np.zeros((4, 4), np.uint8)
    values[0] = 1
    assert read_mask(encode_png(values), "x")[0].all() and read_mask(encode_png(values), "x").sum() == 4
    assert not read_mask(encode_png(np.zeros((4, 4), np.uint8)), "x").any()
    assert read_mask(encode_png(values.astype(np.uint16) * 65535), "x").sum() == 4
    assert read_mask(encode_png(values * 127), "x").sum() == 0


def test_images_of_several_sizes_need_a_size(tmp_path):
    write_pair(tmp_path / "d" / "images", tmp_path / "d" / "masks", "a", "a", side=20)
    write_pair(tmp_path / "d" / "images", tmp_path / "d" / "masks", "b", "b", side=30)
    materialize(local(tmp_path / "d"), tmp_path / "out")
    with pytest.raises(InputError, match="image_size"):
        load_images(tmp_path / "out", "train")
    assert load_images(tmp_path / "out", "train", image_size=16).images.shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": "coco"}, "format"),
        ({"size": 3}, "size"),
        ({"split": {"test": 1.5}}, "split"),
        ({"files": {"all": "x", "test": "y"}}, "all"),
        ({"max_side": 0}, "max_side"),
        ({"source": "world", "generator": "moles", "splits": {"train": 1}}, "generator|unknown key"),
        ({"source": "web"}, "source"),
    ],
)
def test_specs_that_are_refused(change, word):
    with pytest.raises(InputError, match=word):
        check_spec({**local("x"), **change}, "data.x")


def test_otsu_finds_a_dark_square_and_its_largest_part():
    image = np.full((1, 40, 40, 3), 220, np.uint8)
    image[0, 5:20, 5:20] = 40
    image[0, 30:34, 30:34] = 40
    loose, kept = otsu_masks(image, largest_only=False)[0], otsu_masks(image, largest_only=True)[0]
    assert loose[10, 10] and loose[32, 32] and kept[10, 10] and not kept[32, 32] and not kept[25, 25]
