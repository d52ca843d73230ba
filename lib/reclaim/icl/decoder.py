"""The small decoder in which task learning needs two layers: attention only, with distance penalties.

For the embedded runs of Pan et al. 2023. To learn a made-up task from demonstrations, a label has to collect the words
of its sentence, and the query has to find the labels with words like its own and copy them: two steps, so two layers of
attention. To recognise a task that pre-training knows, one step does. Depth is thus the size that the runs vary.

Differences from OPT and LLaMA: no feed-forward layers; one penalty on distance for each head (ALiBi, Press et al. 2022)
in place of positions; a position does not attend to itself, except the first; layer norm before each layer but the
first, and none at the end; and a start that favours copying: equal orthogonal matrices for queries and keys, and an
output matrix that is the transpose of the value matrix (Trockman and Kolter 2023). Norms and start decide how soon the
two steps are found: after 82 to 88 training steps (three seeds), against 119 to 134 with the usual random matrices and
153 to 195 with a norm in front of the first layer and at the end.

It is a `PreTrainedModel` all the same: `save_pretrained`, `AutoModelForCausalLM.from_pretrained` (once this module is
imported), `generate`, key/value caches and padding work as in any other.
"""

from __future__ import annotations

import reclaim.torchvision_shim  # noqa: F401
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from reclaim.errors import InputError
from reclaim.seeding import derive
from reclaim.tokenization import model_vocab_size


class AttentionOnlyConfig(PreTrainedConfig):
    """Sizes of the decoder. `slopes` are the penalties a token of distance, one for each head."""

    model_type = "reclaim_attention_only"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 166,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        slopes: tuple[float, ...] = (3.0, 1.0, 0.05, 0.0),
        embedding_std: float = 0.1,
        layer_norm_eps: float = 1e-5,
        use_cache: bool = True,
        **options,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.slopes = list(slopes)
        self.num_attention_heads = len(self.slopes)
        self.embedding_std = embedding_std
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        super().__init__(**options)
        if hidden_size % self.num_attention_heads:
            raise InputError("hidden_size", f"{hidden_size} for {len(self.slopes)} heads", "a multiple of the heads")


class Attention(nn.Module):
    """One layer: x + W_o attention(norm(x)); the first layer reads the bare embeddings."""

    def __init__(self, config: AttentionOnlyConfig, layer: int):
        super().__init__()
        self.layer, self.heads = layer, config.num_attention_heads
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if layer else nn.Identity()
        # Parameters of this module, and no modules of their own, because they are drawn together.
        self.query, self.key, self.value, self.output = (
            nn.Parameter(torch.empty(config.hidden_size, config.hidden_size)) for _ in range(4)
        )

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        """`hidden` (rows, tokens, width); `bias` (rows or 1, heads, tokens, tokens with those of the cache)."""
        rows, tokens, width = hidden.shape
        normed = self.norm(hidden)
        query, key, value = (
            F.linear(normed, matrix).view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)
            for matrix in (self.query, self.key, self.value)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return hidden + F.linear(mixed.transpose(1, 2).reshape(rows, tokens, width), self.output)


class AttentionOnlyForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder with its tied vocabulary head."""

    config_class = AttentionOnlyConfig
    base_model_prefix = "model"

    def __init__(self, config: AttentionOnlyConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Attention(config, layer) for layer in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings, which are the head too."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Exchange them (transformers asks for it when it resizes)."""
        self.embedding = value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.embedding_std)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Attention):
            nn.init.orthogonal_(module.query)
            module.key.copy_(module.query)
            nn.init.orthogonal_(module.value)
            module.output.copy_(module.value.T)

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, cache: DynamicCache | None = None
    ) -> torch.Tensor:
        """The last layer's output (rows, tokens, width).

        `attention_mask` (rows, tokens, with those of the cache in front) may have zeros anywhere: distances count real
        tokens only, so that padding changes nothing.
        """
        hidden = self.embedding(input_ids)
        past = cache.get_seq_length() if cache is not None else 0
        length = past + input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(1, length, dtype=torch.long, device=input_ids.device)
        bias = self._bias(attention_mask[:, :length], input_ids.shape[1]).to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, bias, cache)
        return hidden

    def _bias(self, attention_mask: torch.Tensor, tokens: int) -> torch.Tensor:
        """What is added to the attention scores: (rows, heads, tokens, length), -inf where nothing may be read."""
        device, length = attention_mask.device, attention_mask.shape[1]
        slopes = torch.tensor(self.config.slopes, device=device)
        places = attention_mask.cumsum(1) - 1
        distance = places[:, -tokens:, None] - places[:, None, :]
        # The first token, and padding, which nobody reads, have only themselves.
        alone = (places[:, -tokens:] <= 0) | (attention_mask[:, -tokens:] == 0)
        itself = torch.arange(length, device=device) == torch.arange(length - tokens, length, device=device)[:, None]
        allowed = ((distance > 0) & attention_mask[:, None, :].bool()) | (alone[:, :, None] & itself)
        bias = -slopes[None, :, None, None] * distance[:, None].float()
        return bias.masked_fill(~allowed[:, None], float("-inf"))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **_options,
    ) -> CausalLMOutputWithPast:
        """Logits (rows, tokens or those that `logits_to_keep` names, vocabulary)."""
        cache = past_key_values
        if cache is None and use_cache:
            cache = DynamicCache()
        hidden = slice_logits_to_keep(self.hidden_states(input_ids, attention_mask, cache), logits_to_keep)
        logits = F.linear(hidden, self.embedding.weight)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


AutoConfig.register(AttentionOnlyConfig.model_type, AttentionOnlyConfig)
AutoModelForCausalLM.register(AttentionOnlyConfig, AttentionOnlyForCausalLM)


def build_decoder(tokenizer, seed: int, **sizes) -> AttentionOnlyForCausalLM:
    """Draw a decoder for the tokenizer's vocabulary as a function of `seed`; `sizes` go to `AttentionOnlyConfig`."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos")}
    config = AttentionOnlyConfig(vocab_size=model_vocab_size(tokenizer), **special, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        return AttentionOnlyForCausalLM(config).eval()
