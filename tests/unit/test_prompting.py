import subprocess
import sys

import pytest
import yaml

from checks_mezo_prompting import ToyTokenizer
from reclaim.errors import InputError
from reclaim.prompting import CausalTemplate, MaskedTemplate, get_template, leading_ids, parse_template, truncate_left

LAST = {"template": "*cls**sent_0*_overall_it_was*mask*_.*sep+*", "label_words": ["terrible", "great"]}


class NoStart(ToyTokenizer):
    """Adds no start token, like GPT-2's."""

    def encode(self, text, add_special_tokens=True):
        return super().encode(text, add_special_tokens=False)


class EndOnly(NoStart):
    """Adds an end token, like T5's; it also has no mask and no cls."""

    cls_token_id = mask_token_id = sep_token_id = bos_token_id = None

    def encode(self, text, add_special_tokens=True):
        return super().encode(text) + ([self.eos_token_id] if add_special_tokens else [])


class Pieces(ToyTokenizer):
    """Knows a few pieces only; everything else is unknown, and bare one-character pieces are other ids than in a
    text.
    """

    known = {" great", " bad", "it", "<a>", " ,"}

    def encode(self, text, add_special_tokens=True):
        tokens = super().encode(text, add_special_tokens=False)
        return [token if token in self.known else self.unk_token_id for token in tokens]

    def convert_tokens_to_ids(self, token):
        return f"bare {token}" if token in "?." else self.unk_token_id


def words(text):
    return ToyTokenizer().encode(text, add_special_tokens=False)


# --------------------------------------------------------------------------------------------------------------- masked


def test_every_variable_of_the_template_language():
    template = MaskedTemplate(
        "*cls**sent_0*x*+sent_1**sentl_0**sent-_0**+sentu_1**sentl-_0**mask**label_1**sep*_a_b*sep+*", ("no", "yes")
    )
    prompt = template.encode(ToyTokenizer(), {"text": "Go on", "text_pair": "we do"})
    assert prompt.input_ids == [
        *("<s>", "Go", " on", "x", " we", " do", "go", " on", "Go", " o", " We", " do", "go", " o"),
        *("<mask>", " yes", "</s>", " a", " b", "</s>"),
    ]
    assert prompt.input_ids[prompt.mask_position] == "<mask>" and not prompt.cut


def test_minus_drops_the_last_character_whatever_it_is():
    parts = parse_template("*sent-_0*?*mask*")
    assert parts[0].apply("Is it so") == "Is it s"
    assert parts[0].apply("") == ""


def test_special_names_are_variables_wherever_they_stand_and_underscores_are_spaces():
    assert [part.kind for part in parse_template("mask*_mask*")] == ["mask", "literal"]
    assert parse_template("*_a_b_*")[0].text == " a b "


@pytest.mark.parametrize("typo", ["*sent0*", "*sent_*", "*sentx_0*", "*+sent*", "*label0*", "*labelx_0*"])
def test_what_looks_like_a_variable_and_is_none_is_refused(typo):
    with pytest.raises(InputError, match="a variable such as"):
        parse_template(f"*cls*{typo}*mask*")


def test_literal_character_is_a_bare_piece_where_there_is_one():
    def encode(template):
        return MaskedTemplate(template, ("great", "bad")).encode(Pieces(), {"text": "it"}).input_ids

    assert encode("*sent_0*?*mask*") == ["it", "bare ?", "<mask>"]
    assert encode("*sent_0*,*mask*") == ["it", "<unk>", "<mask>"]  # no such piece: tokenized
    assert encode("*sent_0*_,*mask*") == ["it", "<unk>", "<unk>", "<mask>"]  # two characters: tokenized


def test_limits_apply_to_each_sentence_and_truncation_to_the_tail():
    template = MaskedTemplate("*cls**sent_0**mask**+sent_1**sep+*", ("a", "b"), first_limit=2, other_limit=1)
    row = {"text": "one two three", "text_pair": "four five"}
    assert template.encode(ToyTokenizer(), row).input_ids == ["<s>", "one", " two", "<mask>", " four", "</s>"]
    cut = template.encode(ToyTokenizer(), row, max_length=5)
    assert (cut.input_ids[-1], cut.cut) == (" four", True)
    with pytest.raises(InputError, match="mask at position 3 of 6 tokens; expected a mask within max_length 3"):
        template.encode(ToyTokenizer(), row, max_length=3)


def test_the_mask_is_the_templates_not_one_in_the_sentence():
    class Splitting(ToyTokenizer):
        def encode(self, text, add_special_tokens=True):
            return [piece for word in text.split() for piece in [word]]

    prompt = MaskedTemplate("*cls**sent_0**mask*", ("a", "b")).encode(Splitting(), {"text": "a <mask> b"})
    assert prompt.mask_position == 4


def test_demonstrations_follow_the_query_with_their_label_word():
    template = MaskedTemplate(LAST["template"], ("terrible", "great"))
    prompt = template.encode(ToyTokenizer(), {"text": "so dull"}, [{"text": "fun", "label": 1}])
    assert prompt.input_ids == [
        *("<s>", "so", " dull", " overall", " it", " was", "<mask>", " ", ".", "</s>"),
        *("fun", " overall", " it", " was", " great", " ", ".", "</s>"),
    ]
    assert prompt.mask_position == 6


def test_t5_has_no_cls_and_a_sentinel_for_the_mask():
    template = MaskedTemplate("*cls**sent_0**mask*.*sep+*", ("a", "b"))
    assert template.encode(EndOnly(), {"text": "hi"}).input_ids == ["hi", "<extra_id_0>", ".", "<eos>"]


def test_label_words_are_single_known_distinct_tokens():
    ids = MaskedTemplate("*mask*", ("great", " bad")).label_word_ids(Pieces())
    assert ids == [" great", " bad"]
    for label_words, reason in (
        (("great", "so so"), r"'so so': found 2 tokens"),
        (("great", "odd"), r"'odd': found an unknown token"),
        (("great", "great"), r"'great': found an unknown token, or that of another"),
    ):
        with pytest.raises(InputError, match=reason):
            MaskedTemplate("*mask*", label_words).label_word_ids(Pieces())


def test_missing_sentence_is_one_clear_error():
    with pytest.raises(InputError, match="sentence 'text_pair': found None in a row with the fields"):
        MaskedTemplate("*mask**sent_1*", ("a", "b")).encode(ToyTokenizer(), {"text": "x"})


# --------------------------------------------------------------------------------------------------------------- causal


def test_custom_causal_template():
    template = get_template({"family": "causal", "prompt": "{text} It was", "candidates": [" bad", " good"]}, "causal")
    options = template.encode(ToyTokenizer(), {"text": "a film", "label": 1})
    assert [option.continuation_ids for option in options] == [[" bad"], [" good"]]
    assert options[0].context_ids == ["<bos>", "a", " film", " It", " was"]
    assert template.correct({"text": "a film", "label": 1}) == (1,)


def test_option_length_counts_what_the_option_adds_where_the_tokenizer_merges():
    class Merging(ToyTokenizer):
        def encode(self, text, add_special_tokens=True):
            tokens = super().encode(text.replace(":good", "@"), add_special_tokens)
            return [":good" if token == "@" else token for token in tokens]

    template = CausalTemplate("{text}:", ("good one", "bad one"))
    good, bad = template.encode(Merging(), {"text": "x"})
    # "x:" has 2 tokens; ":good" swallows the colon.
    assert (good.input_ids, good.option_length) == (["<bos>", "x", ":good", " one"], 1)
    assert (bad.input_ids, bad.option_length) == (["<bos>", "x", ":", "bad", " one"], 2)


def test_option_without_tokens_is_refused():
    with pytest.raises(InputError, match="option .*: found 0 tokens"):
        CausalTemplate("{text}", ("", " x")).encode(ToyTokenizer(), {"text": "a"})
    with pytest.raises(InputError, match="between 1 and 2"):
        CausalTemplate("{text}", (" a b c", " x")).encode(ToyTokenizer(), {"text": "a"}, max_length=3)


def test_truncation_keeps_the_start_token_only_where_there_is_one():
    template = CausalTemplate("{text} is", (" x",))
    rows = [{"text": "a b c d", "label": 0}] * 2
    (option,) = template.encode(ToyTokenizer(), rows[0], rows, max_length=6)
    assert option.cut and option.input_ids == ["<bos>", " b", " c", " d", " is", " x"]
    (option,) = template.encode(NoStart(), rows[0], rows, max_length=6)
    assert option.input_ids == words("a b c d is x")
    assert truncate_left(range(10), 4, keep_first=1) == [0, 7, 8, 9]
    assert truncate_left(range(3), 3) == [0, 1, 2]


def test_special_tokens_at_the_end_are_left_out():
    assert leading_ids(EndOnly()) == []
    (option,) = CausalTemplate("{text}", (" x",)).encode(EndOnly(), {"text": "a"})
    assert option.input_ids == ["a", " x"]


def test_empty_context_gets_a_start_token():
    template = get_template("rte", "causal")
    options = template.encode(NoStart(), {"text": "a", "text_pair": "b"}, calibration="sfc")
    assert [option.input_ids for option in options] == [["<bos>", "Yes"], ["<bos>", "No"]]


def test_calibration_prompts():
    template = get_template("sst2", "causal")
    row, demo = {"text": "a film", "label": 0}, {"text": "dull", "label": 0}
    plain, _ = template.encode(NoStart(), row, [demo], calibration="sfc")
    assert plain.input_ids == ["It", " was", " terrible"]
    shown, _ = template.encode(NoStart(), row, [demo], calibration="icl_sfc")
    assert shown.input_ids == [*words("dull It was terrible\n\n"), "It", " was", " terrible"]
    with pytest.raises(InputError, match="'pmi'"):
        template.encode(NoStart(), row, calibration="pmi")


def test_right_answers_where_the_row_holds_the_candidates():
    copa, record = get_template("copa", "causal"), get_template("record", "causal")
    row = {"text": "x.", "question": "cause", "choices": ["It broke.", "I fell."], "label": 1}
    assert copa.correct(row) == (1,)
    assert copa.demonstration(row) == "x because I fell."
    row = {"text": "p", "query": "@placeholder won", "choices": ["A", "B", "C"], "answers": ["C", "B"], "label": 0}
    assert record.correct(row) == (2, 1)
    assert record.correct({key: value for key, value in row.items() if key != "answers"}) == (0,)
    with pytest.raises(InputError, match="'sideways'|fields"):
        copa.prompt_text({**row, "question": "sideways"})


@pytest.mark.parametrize("label", [2, "1", True, None])
def test_unknown_label_names_the_known_ones(label):
    template = CausalTemplate("{text}", (" a", " b"))
    with pytest.raises(InputError, match=r"label 'label': found .*expected one of \[0, 1\]"):
        template.correct({"text": "x", "label": label})


def test_missing_field_names_template_and_row():
    with pytest.raises(
        InputError, match=r"mine: '\{sentence\} It was': found a row with the fields \['label', 'text'\]"
    ):
        get_template({"prompt": "{sentence} It was", "candidates": ["a"]}, "causal", "mine").prompt_text(
            {"text": "x", "label": 0}
        )


def test_templates_cannot_reach_python():
    for attack in ("{''.__class__.__mro__}", "{text.__init__.__globals__}"):
        with pytest.raises(InputError):
            CausalTemplate(attack, ("a",)).prompt_text({"text": "x"})


# ---------------------------------------------------------------------------------------------------------------
# look-up


@pytest.mark.parametrize("family", ["causal", "masked"])
def test_every_template_of_the_library_builds(family):
    from importlib import resources

    names = yaml.safe_load((resources.files("reclaim") / "templates" / f"{family}.yaml").read_text())
    for name in names:
        assert get_template(name, family).name == name
    assert {"sst2", "rte", "last", "generic"} <= set(names)


def test_named_template_with_some_keys_replaced():
    template = get_template({"name": "snli", "labels": ["entailment", "neutral", "contradiction"]}, "masked")
    assert template.correct({"label": "contradiction"}) == (2,)
    assert template.label_words[2] == "No"


@pytest.mark.parametrize(
    "spec, family, message",
    [
        ("copa", "masked", r"tasks\.x: found no masked template 'copa'; expected one of generic"),
        ("sst2", "recurrent", "family 'recurrent'; expected one of causal, masked"),
        ({**LAST, "family": "causal"}, "masked", "family 'causal'; expected 'masked'"),
        ({**LAST, "labelwords": []}, "masked", "unknown key 'labelwords'; expected keys among first_limit"),
        ({"template": "*mask*"}, "masked", "no key 'label_words'"),
        ({"template": "no mask", "label_words": ["a"]}, "masked", "0 masks"),
        ({"template": "*mask**mask*", "label_words": ["a"]}, "masked", "2 masks"),
        ({"template": "*mask**sent_2*", "label_words": ["a"]}, "masked", "sentence 2, counted from 0"),
        ({"template": "*mask*", "label_words": [False, True]}, "masked", "a list of texts. Put words such as no"),
        ({"template": "*mask*", "label_words": "ab"}, "masked", "found 'ab'; expected a list"),
        ({"template": "*mask*", "label_words": ["a", "b"], "labels": [0]}, "masked", "a word for each of the labels"),
        ({"template": "*mask*", "label_words": ["a"], "max_length": True}, "masked", "True; expected a number"),
        ({"prompt": "{text", "candidates": ["a"]}, "causal", "does not parse"),
        (
            {"prompt": "x", "candidates": ["a", "b"], "labels": [1]},
            "causal",
            "1 labels; expected as many as candidates",
        ),
        ({"prompt": "x", "candidates": []}, "causal", r"candidates: found \[\]"),
        (7, "causal", "found 7; expected the name of a template"),
    ],
)
def test_bad_templates_are_one_clear_error(spec, family, message):
    with pytest.raises(InputError, match=message):
        get_template(spec, family, "tasks.x")


def test_prompting_does_not_import_torch():
    code = "import sys, reclaim.prompting, reclaim.sampling, reclaim.metrics.qa; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
