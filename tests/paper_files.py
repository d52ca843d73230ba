"""Small hand-made files in the released formats of what the Hub does not have, at the paths that the overlay names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

WORDS = "river stone cloud paper engine garden window silver market yellow winter bottle ladder forest copper".split()
CANNOT = "CANNOTANSWER"


def write_files(spec: Mapping[str, Any], rows: int = 24) -> None:
    """Write the files that a local data set of the overlay takes; variables of their paths are set by the caller."""
    for split, text in spec["files"].items():
        path = Path(os.path.expandvars(text))
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = spec["format"] if "format" in spec else spec["kind"]
        WRITERS[kind](path, split, rows)
    if "rewrites" in spec:
        path = Path(os.path.expandvars(spec["rewrites"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        asked = {"QuAC_dialog_id": "C_test0_q", "Question_no": 2, "Question": "Where is it?", "History": []}
        path.write_text(json.dumps([{**asked, "Rewrite": "Where is the stone?"}]))


def sentence(number: int, extra: str = "") -> str:
    return f"The {WORDS[number % 15]} {number} has a {WORDS[number * 7 % 15]} and a {WORDS[number * 4 % 15]}{extra}."


# ------------------------------------------------------------------------------------------------------------- dialogues


def _parlai(path: Path, split: str, rows: int) -> None:
    """Bot-adversarial dialogue: a persona and turns in `text`, the last of which is labelled."""
    lines = []
    for i in range(rows):
        label = "__notok__" if i % 2 else "__ok__"
        text = rf"your persona: i like the {WORDS[i % 15]}.\nhello\n{sentence(i)}"
        lines.append(f"text:{text}\tlabels:{label}\tdialogue_id:{i}\tspeaker_to_eval:bot\tepisode_done:True\n")
    path.write_text("".join(lines))


def _single_turn(path: Path, _split: str, rows: int) -> None:
    def texts(label: str, at: int) -> list[dict[str, Any]]:
        return [{"text": sentence(i, f" {at}"), "labels": [label], "episode_done": True} for i in range(rows // 2)]

    rounds = {"1": {"good": texts("__ok__", 0), "bad": texts("__notok__", 1)}}
    dump = {task: {part: rounds for part in ("train", "valid", "test")} for task in ("standard", "adversarial")}
    path.write_text(json.dumps(dump))


def _multi_turn(path: Path, _split: str, rows: int) -> None:
    row = [
        {
            "text": f"hi\nhello\n{sentence(i, ' 2')}",
            "labels": ["__notok__" if i % 2 else "__ok__"],
            "episode_done": True,
        }
        for i in range(rows)
    ]
    path.write_text(json.dumps(dict.fromkeys(("train", "valid", "test"), row)))


def _decode(path: Path, split: str, rows: int) -> None:
    lines = []
    for i in range(rows):
        turns = [
            {"agent_id": str(place % 2), "text": text, "turn_id": place, "auxiliary": {"contradiction_indices": []}}
            for place, text in enumerate((f"{split} {i}", "I have a stone.", "Nice.", sentence(i)))
        ]
        row = {"record_id": f"{split}-{i}", "turns": turns, "is_contradiction": i % 2 == 1}
        lines.append(json.dumps({**row, "aggregated_contradiction_indices": [1, 3] if i % 2 else []}) + "\n")
    path.write_text("".join(lines))


def _dnli(path: Path, split: str, rows: int) -> None:
    """One JSON list, as the released `.jsonl` files are."""
    labels = ("positive", "negative", "neutral")
    content = [
        {
            "id": f"{split}_{i}", "label": labels[i % 3], "sentence1": sentence(i), "sentence2": sentence(i + 3, " here"),
            "triple1": ["i", "have", WORDS[i % 15]], "triple2": ["i", "have", WORDS[(i + 3) % 15]], 
            "dtype": "matchingtriple_up",
        }
        for i in range(rows)
    ]  # fmt: skip
    path.write_text(json.dumps(content))


def _fits(path: Path, split: str, rows: int) -> None:
    """Dialogues in which the bot fails once, twice or not at all before its reply is perfect."""
    lines = []
    for i in range(rows // 4):
        topic = f"{path.parent.name} {split} {i}"
        dialog = [{"id": "YOU", "text": f"Tell me of the {topic}."}]
        for attempt, bucket in enumerate(("better_search_query", "better_search_doc", "better_others")[: i % 3]):
            failed = {"id": "BlenderBot", "text": f"I do not know {attempt}.", "improve_bucket": bucket}
            dialog += [{**failed, "search_queries": "stone", "top_docs": ["Stone | A stone."]}]
            dialog += [{"id": "YOU", "text": "No.", "feedback_type": bucket, "feedback_text": "look again"}]
        dialog += [{"id": "BlenderBot", "text": f"{sentence(i)}\n_POTENTIALLY_UNSAFE__", "improve_bucket": "perfect"}]
        dialog += [
            {"id": "YOU", "text": "Thank you."},
            {"id": "BlenderBot", "text": "Bye.", "improve_bucket": "perfect"},
        ]
        about = {"chat_task_name": "know", "chat_task_requirement": "ask", "topic": topic, "generic_topic": "x"}
        lines.append(json.dumps({**about, "domain": "d", "chat_task_uid": str(i), "dialog": dialog}) + "\n")
    path.write_text("".join(lines))


def _convai2(path: Path, split: str, rows: int) -> None:
    lines = []
    for i in range(rows // 2):
        persona = [f"your persona: i like the {word} ." for word in (WORDS[i % 15], WORDS[i * 2 % 15])]
        turns = [f"{split} {i} hello !\thi , how are you ?", f"well , and you ?\t{sentence(i).lower()}\t\ta|b"]
        lines += [f"{number} {text}\n" for number, text in enumerate(persona + turns, 1)]
    path.write_text("".join(lines))


# ----------------------------------------------------------------------------------------------------------------- texts


def _text(path: Path, _split: str, rows: int) -> None:
    path.write_text("".join(f"{sentence(i, f' {i}')}\n" for i in range(rows * 4)))


def _label_text(path: Path, _split: str, rows: int) -> None:
    path.write_bytes("".join(f"{i % 2} {sentence(i)} caf\xe9\n" for i in range(rows * 5)).encode("latin-1"))


def _tsv(path: Path, _split: str, rows: int) -> None:
    """DPR's Wikipedia: quoted texts, id first."""
    lines = [f'{i}\t"{sentence(i)} ""{WORDS[i % 15]}"""\t{WORDS[i % 15]}\n' for i in range(1, rows + 1)]
    path.write_text("id\ttext\ttitle\n" + "".join(lines))


def _jsonl(path: Path, _split: str, rows: int) -> None:
    path.write_text("".join(json.dumps({"title": WORDS[i % 15], "text": sentence(i)}) + "\n" for i in range(rows)))


def _quac(path: Path, split: str, rows: int) -> None:
    data = []
    for i in range(max(2, rows // 8)):
        key, context = f"C_{split}{i}_q", f"{sentence(i)} It is in the market. {CANNOT}"
        start = context.index("the market")
        qas = []
        for turn, (question, text, place) in enumerate((
            (f"What is the {WORDS[i]}?", context[: context.index(" has")], 0),
            ("Where is it?", "the market", start),
            ("Who has it?", CANNOT, context.index(CANNOT)),
        )):  # fmt: skip
            answers = [{"text": text, "answer_start": place}] * (1 if split == "train" else 2)
            qas.append(
                {"id": f"{key}_q#{turn}", "question": question, "answers": answers, "orig_answer": answers[0],
                 "yesno": "x", "followup": "m"}
            )  # fmt: skip
        article = {"title": WORDS[i], "section_title": "Early life", "background": "A thing of the town."}
        data.append({**article, "paragraphs": [{"id": key, "context": context, "qas": qas}]})
    path.write_text(json.dumps({"data": data}))


# ---------------------------------------------------------------------------------------------------------------- images


def _isic(path: Path, split: str, images: str, masks: str, suffix: str) -> None:
    from PIL import Image

    rng = np.random.default_rng(len(split))
    for folder in (path / images, path / masks):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(10):
        pixels = rng.integers(0, 200, (36, 40, 3), dtype=np.uint8)
        mask = np.zeros((36, 40), np.uint8)
        mask[8:28, 6 : 20 + number] = 255
        pixels[mask > 0] //= 3
        stem = f"ISIC_{len(split)}00000{number}"
        Image.fromarray(pixels).save(path / images / f"{stem}.jpg")
        Image.fromarray(mask).save(path / masks / f"{stem}{suffix}.png")


def _isic2018(path: Path, split: str, _rows: int) -> None:
    _isic(path, split, "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "_segmentation")


def _isic2016(path: Path, split: str, _rows: int) -> None:
    part = {"train": "Training", "test": "Test"}[split]
    names = (f"ISBI2016_ISIC_Part1_{part}_Data", f"ISBI2016_ISIC_Part1_{part}_GroundTruth")
    _isic(path, split, *names, "_Segmentation")


def _faces(path: Path, name: str) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for subject in range(1, 5):
        base = rng.integers(0, 150, (40, 36))
        for view in range(6):
            file = path / name.format(subject=subject, view=view)
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray((base + rng.integers(0, 60, (40, 36))).astype(np.uint8))
            picture.save(file, format="PNG")


def _subject_folders(path: Path, _split: str, _rows: int) -> None:
    _faces(path, "s{subject}/{view}.png")


def _subject_files(path: Path, _split: str, _rows: int) -> None:
    """Names of Yale (subject01.glasses), and of COIL (obj1__0.png) where the folder is COIL's."""
    _faces(path, "obj{subject}__{view}.png" if "coil" in path.name else "subject0{subject}.view{view}")


WRITERS = {
    "parlai": _parlai,
    "build_it_break_it": _single_turn,
    "multi_turn_safety": _multi_turn,
    "decode": _decode,
    "dnli": _dnli,
    "fits": _fits,
    "convai2": _convai2,
    "text": _text,
    "label_text": _label_text,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "conversations": _quac,
    "isic2018": _isic2018,
    "isic2016": _isic2016,
    "subject_folders": _subject_folders,
    "subject_files": _subject_files,
}
"""Format, or the kind of data sets that have no format -> what writes a file of it: (path, split, rows)."""


# ------------------------------------------------------------------------------------------------------------------ ALCE


def write_archive(path: Path, rows: int = 3) -> Path:
    """ALCE's tar with the five files that the overlay reads, each with a few questions and their passages."""
    import io
    import tarfile

    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("asqa_eval_gtr", "asqa_eval_dpr", "qampari_eval_gtr", "qampari_eval_dpr", "eli5_eval_bm25")
    with tarfile.open(path, "w") as archive:
        for name in names:
            content = json.dumps([alce_item(name.partition("_")[0], i) for i in range(rows)]).encode()
            member = tarfile.TarInfo(f"ALCE-data/{name}_top100.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def alce_item(task: str, number: int) -> dict[str, Any]:
    documents = []
    for i in range(12):
        text = sentence(number + i)
        document = {
            "id": str(i + 1),
            "title": WORDS[i],
            "text": text,
            "score": str(1 / (i + 1)),
            "answers_found": [i % 2],
        }
        short = {"summary": text[:20], "extraction": "irrelevant" if i == 1 else text[:15]}
        documents.append({**document, **(short if i < 10 else {})})
    answer = f"{WORDS[number]} {number}"
    item = {"question": f"What is the {WORDS[number]}?", "answer": sentence(number), "docs": documents}
    if task == "asqa":
        pairs = [
            {"question": f"Which {word}?", "short_answers": [word, answer], "context": None, "wikipage": None}
            for word in WORDS[:2]
        ]
        notes = [{"long_answer": sentence(number, each), "knowledge": []} for each in ("", " indeed")]
        return {**item, "qa_pairs": pairs, "annotations": notes, "sample_id": str(number)}
    if task == "qampari":
        return {**item, "answers": [[word, word.title()] for word in WORDS[:6]], "id": str(number)}
    return {**item, "claims": [sentence(number + i) for i in range(3)], "question_ctx": "[removed]"}


def write_prompts(folder: Path) -> None:
    """Files of the form of ALCE's `prompts/`, one for each task and mode."""
    modes = ("default", "light_inst", "sum_or_ext", "interact_doc_id", "interact_search", "closedbook")
    folder.mkdir(parents=True, exist_ok=True)
    for task in ("asqa", "qampari", "eli5"):
        for mode in modes:
            demos = []
            for i in range(4):
                item = alce_item(task, i)
                answer = (
                    ["Check: Document [1]", "Output: A stone [1]."] if mode.startswith("interact") else "A stone [1]."
                )
                demos.append({**item, "answer": answer, "docs": item["docs"][:5]})
            form = "{INST}\n\nQuestion: {Q}\n\n{D}\nAnswer: {A}"
            content = {
                "instruction": "Instruction: Answer and cite.",
                "demo_sep": "\n\n\n",
                "demo_prompt": form.replace("{D}\n", "") if mode == "closedbook" else form,
                "doc_prompt": "Document [{ID}](Title: {T}): {P}\n",
                "demos": demos,
            }
            (folder / f"{task}_{mode}.json").write_text(json.dumps(content))
