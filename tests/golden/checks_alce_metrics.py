"""Checks of the ALCE vectors that hold scores: items, whole files, text helpers, histograms, decoded answers, stand-ins."""

import json
from functools import cache

import numpy as np

import alce_stubs
from reclaim.alce.evaluate import evaluate, official_scores
from reclaim.errors import InputError
from reclaim.metrics.citations import first_line, multiple_citations, remove_citations
from reclaim.metrics.long_answers import bootstrap_median, contains_answer, fluency_text, squad2_f1
from reclaim.metrics.mauve import mauve_of_histograms
from reclaim.metrics.qa import exact_match, normalize_answer
from reclaim.metrics.sentences import Splitter, sentence_splitter
from reclaim.metrics.span_decode import Chunk, best_span

TOLERANCE = 1e-9


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def close(found, expected, place, tolerance=TOLERANCE):
    assert abs(found - expected) <= tolerance, f"{place}: {found} instead of {expected}"


def splitters(case):
    """Splitters and what each has to give: the trained or the untrained Punkt, and the recorded statements."""
    expected = {"expected": case["expected"], "statements": case["statements"]}
    trained = sentence_splitter("auto")
    if trained.name == "punkt":
        yield trained, expected
    untrained = case.get("with_untrained_punkt")
    yield sentence_splitter("punkt_untrained"), untrained or expected
    if untrained:
        # The statements of the trained splitter for the text that is judged, the untrained one for the texts of ROUGE.
        recorded, output = [row["sentence"] for row in case["statements"]], first_line(case["item"]["output"])
        other = sentence_splitter("punkt_untrained")
        yield Splitter("recorded", lambda text: recorded if text == output else other(text)), expected


def settings(case):
    return {
        "dataset": case["dataset"],
        "at_most_citations": case["at_most_citations"],
        "cot": case.get("cot", False),
        "reader": alce_stubs.reader,
    }


def compare(scores, expected, place):
    """Every score of a file but MAUVE, whose stand-in returns a constant; null is the mean of nothing, which has no row."""
    for name, value in expected.items():
        if name == "mauve":
            continue
        if value is None:
            assert name not in scores, f"{place}: {name} is {scores[name]}, and a mean of nothing there"
        else:
            close(scores[name], value, f"{place}: {name}")


def check_parts(case, place):
    """An item that stops the original: the same settings stop here, the others give its scores."""
    for part, expected in case["parts"].items():
        given = [case["item"]], alce_stubs.judge(case["nli"])
        options = settings(case) | {"measures": ["correctness", *({part} & {"citations", "claims", "qa", "rouge"})]}
        if "raises" in expected and part == "qa":
            evaluate(*given, **options)  # one question only: the original reads the pipeline's answer wrongly
        elif "raises" in expected:
            try:
                evaluate(*given, "legacy", **options)
            except InputError:
                evaluate(*given, "strict", **options)  # goes on
                continue
            raise AssertionError(f"{place}: {part} does not stop, the original has {expected['raises']}")
        compare(official_scores(evaluate(*given, "legacy", **options)), expected, f"{place}, {part}")


def claim_questions(case):
    return len(case["item"]["claims"]) if case["dataset"] == "eli5" else 0


def check_items(path):
    cases = read(path)
    for case in cases:
        place = f"{case['id']} ({case['note']})"
        if "raises" in case["expected"]:
            check_parts(case, place)
            continue
        for split, expected in splitters(case):
            found = evaluate([case["item"]], alce_stubs.judge(case["nli"]), split=split, **settings(case))
            compare(official_scores(found), expected["expected"], f"{place}, {split.name}")
            statements = found.answers[0].statements
            wanted = [(row["sentence"], row["citations_zero_based"]) for row in expected["statements"]]
            assert [(s.text, s.cited) for s in statements] == wanted, place
        # The recorded traces belong to the splitter of `expected`.
        check_trace(case, found, place)
        check_fluency(case, place)
    return len(cases)


def check_trace(case, found, place):
    asked = [(p, h, int(v)) for s in found.answers[0].statements for p, h, v in s.asked]
    assert len(asked) + claim_questions(case) == case["n_nli_calls"], f"{place}: {len(asked)} questions to the judge"
    if case["nli_trace"]:
        for (premise, claim, verdict), wanted in zip(asked, case["nli_trace"], strict=False):
            assert [premise, claim, verdict] == [*wanted[:2], int(wanted[2])], f"{place}: {premise!r}, {claim!r}"
    check_percentages(multiple_citations(found.answers), case["multi_cite_percentages"], place)


def check_percentages(shares, expected, place):
    if expected is not None:
        found = [100 * shares.get(name, 0.0) for name in ("multi_cite", "multi_cite_supported", "over_cite")]
        for share, wanted in zip(found, expected, strict=True):
            assert wanted is None or abs(share - wanted) <= 0.005 + TOLERANCE, f"{place}: {found} instead of {expected}"


def check_fluency(case, place):
    recorded = case.get("mauve_texts")
    if recorded:
        item = case["item"]
        plain = remove_citations(first_line(item["output"]))
        for side, text in (("p_text", item["answer"]), ("q_text", plain)):
            assert recorded[side] == [fluency_text(item["question"], text)], f"{place}: {side}"


@cache
def items_of(folder):
    return {case["id"]: case for case in read(folder / "items.json")}


def check_aggregate(path):
    files = read(path)
    for number, case in enumerate(files):
        place = f"file {number} ({case['dataset']})"
        cases = [items_of(path.parent)[name] for name in case["ids"]]
        recorded = {first_line(c["item"]["output"]): [row["sentence"] for row in c["statements"]] for c in cases}
        untrained = sentence_splitter("punkt_untrained")
        split = Splitter("recorded", lambda text, recorded=recorded, u=untrained: recorded.get(text) or u(text))
        judge = alce_stubs.judge(case["nli"])
        items = [c["item"] for c in cases]
        options = settings(case) | {"split": split}
        found = evaluate(items, judge, **options)
        compare(official_scores(found), case["expected"], place)
        check_percentages(multiple_citations(found.answers), case["multi_cite_percentages"], place)
        claims = sum(map(claim_questions, cases))
        asked = found.value("num_questions") + claims
        assert asked == case["n_nli_calls"], f"{place}: {asked} questions"
        if "rougeLsum_seeds" in case:
            values = [each["rouge_lsum"] for each in found.items]
            close(100 * np.mean(values), case["rougeLsum_plain_mean"], f"{place}: plain ROUGE")
            for seed, value in enumerate(case["rougeLsum_seeds"]):
                close(100 * bootstrap_median(values, seed), value, f"{place}: ROUGE of seed {seed}")
        if "mauve_p_text" in case:
            plain = [remove_citations(first_line(item["output"])) for item in items]
            questions, answers = [item["question"] for item in items], [item["answer"] for item in items]
            assert case["mauve_p_text"] == list(map(fluency_text, questions, answers)), place
            assert case["mauve_q_text"] == list(map(fluency_text, questions, plain)), place
    return len(files)


def check_text_helpers(path):
    cases = read(path)
    for text, expected in cases["normalize_answer"]:
        assert normalize_answer(text) == expected, repr(text)
    for text, expected in cases["remove_citations"]:
        assert remove_citations(text) == expected, repr(text)
    for case in cases["exact_and_f1"]:
        assert exact_match(case["pred"], [case["gold"]]) == case["exact"], case
        close(squad2_f1(case["pred"], case["gold"]), case["f1"], case)
    for case in cases["exact_presence"]:
        assert contains_answer(case["short_answers"], case["context"]) == case["expected"], case
    return sum(map(len, cases.values()))


def check_histograms(path):
    cases = read(path)["cases"]
    for number, case in enumerate(cases):
        close(mauve_of_histograms(case["p_hist"], case["q_hist"]), case["mauve"], f"histogram {number}", 1e-6)
    return len(cases)


def check_decode(path):
    vectors = read(path)
    options = {"max_answer_length": vectors["settings"]["max_answer_len"]}
    for number, case in enumerate(vectors["cases"]):
        chunks = [
            Chunk(c["start_logits"], c["end_logits"], c["context_mask"], c["offsets"], c["word_ids"])
            for c in case["chunks"]
        ]
        found, expected = best_span(chunks, case["context"], **options), case["expected"]
        wanted = (expected["answer"], expected["start"], expected["end"])
        assert (found.text, found.start, found.end) == wanted, f"case {number}: {found}"
        close(found.score, expected["score"], f"case {number}", 1e-6)
    return len(vectors["cases"])


def check_stubs(path):
    vectors = read(path)
    for case in vectors["nli"]:
        for name, function in alce_stubs.NLI.items():
            assert function(case["premise"], case["claim"]) == bool(case[name]), (name, case)
        close(alce_stubs.probability(case["premise"], case["claim"]), case["prob"], case)
    for case in vectors["qa"]:
        assert alce_stubs.read_answer(case["question"], case["context"]) == case["answer"], case
    for case in vectors["embed"]:
        (vector,) = alce_stubs.encode([case["text"]])
        assert sorted(map(int, case["nonzero"])) == np.flatnonzero(vector).tolist(), case["text"]
        for place, value in case["nonzero"].items():
            close(vector[int(place)], value, case["text"], 1e-6)
    return sum(map(len, vectors.values()))


CHECKS = [
    ("items.json", check_items),
    ("aggregate.json", check_aggregate),
    ("text_helpers.json", check_text_helpers),
    ("mauve_histograms.json", check_histograms),
    ("qa_decode.json", check_decode),
    ("stub_vectors.json", check_stubs),
]
