"""Build or load any model and its tokenizer: from scratch, from the Hub by revision, or from a local folder.

Whatever the source, the result is a folder that `from_pretrained` reads; nothing later in the workflow knows where it came
from. Remote code and pickled weights are refused (safetensors only, `trust_remote_code=False`).
"""

from __future__ import annotations

import math
from pathlib import Path

import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim.architectures import ARCHITECTURES
from reclaim.errors import InputError
from reclaim.fairseq import refuse_post_norm
from reclaim.io import read_json
from reclaim.seeding import derive
from reclaim.tokenization import model_vocab_size


def _auto_class(objective: str):
    import transformers

    # A head that is drawn afresh is meant, not a fault to report; bars of a second's work do not belong in a log.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return {
        "masked": transformers.AutoModelForMaskedLM,
        "causal": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "classification": transformers.AutoModelForSequenceClassification,
    }[objective]


def build(architecture: str, tokenizer, config: dict, seed: int, linear_init: str = "config"):
    """Build a language model with random weights.

    `config` goes to the architecture's config class; vocabulary size and special ids come from the tokenizer. With
    `linear_init="fan_in"` every Linear weight is drawn from N(0, 1/fan_in) in place of the config's `initializer_range`:
    at small widths 0.02 is so far below 1/sqrt(width) that the branches start almost silent. The same seed gives the same
    weights whatever else has happened in the process.

    Raises `InputError` for an unknown architecture or config key.
    """
    import transformers

    if architecture not in ARCHITECTURES:
        raise InputError("models.*.architecture", repr(architecture), f"one of {', '.join(ARCHITECTURES)}")
    class_name, objective = ARCHITECTURES[architecture]
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos")}
    if objective == "seq2seq":
        special["decoder_start_token_id"] = tokenizer.pad_token_id
    config_class = getattr(transformers, class_name)
    unknown = set(config) - set(config_class().to_dict())
    if unknown:
        raise InputError("models.*.config", f"unknown keys {sorted(unknown)}", f"arguments of {class_name}")
    model_config = config_class(vocab_size=model_vocab_size(tokenizer), **special, **config)
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "init"))
        model = _auto_class(objective).from_config(model_config)
        if linear_init == "fan_in":
            tied = model.get_input_embeddings().weight
            for module in model.modules():
                if isinstance(module, torch.nn.Linear) and module.weight is not tied:
                    torch.nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
    return model.eval()


def load(
    folder: str | Path,
    objective: str,
    seed: int = 0,
    num_labels: int | None = None,
    dtype=torch.float32,
    device_map: str | dict | None = None,
):
    """Load a model for an objective (`masked`, `causal`, `seq2seq` or `classification`) from a `save_pretrained` folder.

    It is in eval mode. A classification head that the folder does not hold is drawn with the model's own
    `initializer_range`, as a function of `seed`. Dropout of the head follows the config (`classifier_dropout`).
    With a `device_map` ("auto", or module -> device) accelerate spreads the model over the devices that the process sees,
    layer by layer, and moves activations along: for models too large for one device, in inference and MeZO.

    Raises `InputError` when the folder holds no model, one of another architecture than the objective needs, or a language
    model of which weights are missing.
    """
    from safetensors import SafetensorError

    place = str(folder)
    if not (Path(folder) / "config.json").exists():
        raise InputError(place, "no config.json", "a folder written by save_pretrained")
    refuse_post_norm(place, _config(folder))
    options = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    if device_map is not None:
        options["device_map"] = device_map
    if objective == "classification":
        options["num_labels"] = num_labels
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "head"))
        try:
            model, found = _auto_class(objective).from_pretrained(place, output_loading_info=True, **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise InputError(place, first_line, f"the weights of a {objective} model in safetensors") from error
    if objective != "classification" and found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise InputError(
            place, f"no weights for {', '.join(missing[:3])} ({len(missing)} missing)", "all weights of the model"
        )
    # A sum is not finite if a term is not, and needs no copy. Weights that accelerate left on disk are not looked at.
    weights = [(name, weight) for name, weight in model.named_parameters() if not weight.is_meta]
    if broken := [name for name, weight in weights if not weight.sum(dtype=torch.float32).isfinite()]:
        raise InputError(place, f"NaN or infinity in {broken[0]} ({len(broken)} such tensors)", "finite weights")
    return model.eval()


def _config(folder: str | Path) -> dict:
    try:
        return read_json(Path(folder) / "config.json")
    except ValueError as error:
        raise InputError(f"{folder}/config.json", f"no JSON ({error})", "the config of a model") from error


def model_family(folder: str | Path) -> str:
    """`masked`, `causal` or `seq2seq`, by the architecture that the folder's config names.

    Raises `InputError` for a folder without a config, and for an architecture without a language-model head.
    """
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            str(folder), str(error).strip().splitlines()[0], "a model folder with a config.json"
        ) from error
    if config.is_encoder_decoder and type(config) in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return "seq2seq"
    if type(config) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING:
        return "masked"
    if type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        return "causal"
    if type(config) in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return "seq2seq"  # its encoder alone, as GTR is that of a T5
    raise InputError(
        str(folder), f"the architecture {config.model_type!r}", "a masked, causal or encoder-decoder language model"
    )


def load_tokenizer(folder: str | Path):
    """Load the tokenizer of a `save_pretrained` folder.

    Raises `InputError` when there is none, and when the folder holds a model that has no embedding for some of its ids.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # `tokenizers` raises plain exceptions for files that it cannot read
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(str(folder), first_line, "a tokenizer written by save_pretrained") from error
    if (Path(folder) / "config.json").exists():
        embeddings = _config(folder).get("vocab_size") or math.inf
        if model_vocab_size(tokenizer) > embeddings:
            found = f"a tokenizer of {model_vocab_size(tokenizer)} ids beside a model with {embeddings} embeddings"
            raise InputError(str(folder), found, "a tokenizer whose every id the model knows", "Is it another model's?")
    return tokenizer


def masked_lm_logits(model, hidden_states: torch.Tensor) -> torch.Tensor:
    """Vocabulary logits of chosen rows.

    `hidden_states` (rows, hidden) are outputs of the base model at the positions that are predicted; evaluating the head
    only there saves most of the memory and time of a large vocabulary. Covers the RoBERTa family (`lm_head`) and BERT
    (`cls`).
    """
    head = getattr(model, "lm_head", None) or getattr(model, "cls", None)
    if head is None:
        raise InputError(
            type(model).__name__, "no lm_head or cls", "a masked language model of the RoBERTa or BERT family"
        )
    return head(hidden_states)
