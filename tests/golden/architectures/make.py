"""Makes the tiny models of this folder, in both file formats, and what Hugging Face transformers
answers with each. README.md says how to run it and what the files are."""

import json
import math
import pathlib
import struct
import sys

import gguf
import numpy
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
PROMPT, DECODED, LAST = 200, 32, 8
VOCAB = 208

SHAPE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=256, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
    rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
SMALL = SHAPE | dict(intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)

# name: (transformers' configuration, GGUF architecture)
CASES = {
    "llama-linear": (
        transformers.LlamaConfig(**SMALL | dict(rope_scaling=dict(rope_type="linear", factor=4.0))),
        "llama",
    ),
    "llama-llama3": (
        transformers.LlamaConfig(**SMALL | dict(rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64))),
        "llama",
    ),
    "llama-yarn": (
        transformers.LlamaConfig(**SMALL | dict(rope_scaling=YARN, max_position_embeddings=256)),
        "llama",
    ),
    "qwen2": (transformers.Qwen2Config(**SHAPE), "qwen2"),
    "mistral": (
        transformers.MistralConfig(**SHAPE | dict(sliding_window=24, tie_word_embeddings=False)),
        "llama",
    ),
    "qwen3": (
        transformers.Qwen3Config(**SHAPE | dict(
            head_dim=16, num_attention_heads=6, num_key_value_heads=3, intermediate_size=384)),
        "qwen3",
    ),
    "phi3": (
        transformers.Phi3Config(**SHAPE | dict(
            sliding_window=20, partial_rotary_factor=0.5, num_attention_heads=2)),
        "phi3",
    ),
    "gemma2": (
        transformers.Gemma2Config(**SHAPE | dict(
            head_dim=16, sliding_window=24, num_hidden_layers=3, query_pre_attn_scalar=16,
            attn_logit_softcapping=2.0, final_logit_softcapping=10.0)),
        "gemma2",
    ),
    "gemma3": (
        transformers.Gemma3TextConfig(**SHAPE | dict(
            head_dim=16, sliding_window=24, num_hidden_layers=6, query_pre_attn_scalar=16,
            intermediate_size=128, num_key_value_heads=1, num_attention_heads=2,
            rope_theta=1000000.0, rope_scaling=dict(rope_type="linear", factor=8.0))),
        "gemma3",
    ),
    "qwen3moe": (
        transformers.Qwen3MoeConfig(**SHAPE | dict(
            head_dim=16, moe_intermediate_size=48, num_experts=8, num_experts_per_tok=3,
            norm_topk_prob=True)),
        "qwen3moe",
    ),
    # Odd numbers of experts; their columns are no whole segments.
    "mixtral": (
        transformers.MixtralConfig(**SHAPE | dict(
            head_dim=16, num_attention_heads=6, num_key_value_heads=3, intermediate_size=144,
            num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=False)),
        "llama",
    ),
    "phi3-longrope": (
        transformers.Phi3Config(**SHAPE | dict(
            partial_rotary_factor=0.75, num_attention_heads=2, original_max_position_embeddings=128,
            max_position_embeddings=256,
            rope_scaling=dict(
                type="longrope", short_factor=[1.0, 1.05, 1.1, 1.2, 1.4, 1.5],
                long_factor=[1.1, 1.5, 2.5, 5.0, 7.5, 9.0]))),
        "phi3",
    ),
}

# Every part of a name that llama.cpp's conversions rename, by its place in a layer.
GGUF_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp", "block_sparse_moe.gate": "ffn_gate_inp",
}
# The same of an expert, whose tensor has all experts of the layer.
EXPERT_NAMES = {
    "w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps",
    "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps",
}
GEMMA_NAMES = GGUF_NAMES | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def is_router(name):
    return name.endswith(("mlp.gate.weight", "block_sparse_moe.gate.weight"))


def fill(model, seed):
    """Weights of few distinct values, so that the files pack well; exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    is_gemma = "Gemma" in type(model).__name__
    for name, weight in model.named_parameters():
        levels = torch.randint(-7, 8, weight.shape, generator=generator).float()
        if "norm" in name:
            weight.data = levels / 32 + (0.0 if is_gemma else 1.0)
        elif "embed" in name or "lm_head" in name:
            weight.data = levels / 8
        elif "bias" in name:
            weight.data = levels / 4
        elif "q_proj" in name or "k_proj" in name or "qkv" in name:
            # Scores that differ, so that positions, windows and caps show in the answer.
            weight.data = levels / 16
        elif is_router(name):
            weight.data = levels / 8
        else:
            weight.data = levels / 32
        assert torch.equal(weight.data, weight.data.bfloat16().float()), name


def answer(model, tokens):
    """Logits of the last prompt positions and of greedy steps, with the tokens those chose."""
    with torch.no_grad():
        out = model(torch.tensor([tokens]), use_cache=False)
        logits = [row for row in out.logits[0, -LAST:]]
        for _ in range(DECODED):
            tokens = tokens + [int(logits[-1].argmax())]
            logits.append(model(torch.tensor([tokens]), use_cache=False).logits[0, -1])
    return tokens, torch.stack(logits)


def check_routes(model, tokens):
    """Experts chosen by a hair would be others where keys and values are rounded."""
    with torch.no_grad():
        layers = model(torch.tensor([tokens]), output_router_logits=True).router_logits
    used = model.config.num_experts_per_tok
    best = torch.cat(layers).sort(descending=True).values
    gap = (best[:, used - 1] - best[:, used]).min()
    assert gap > 1e-3, f"experts are chosen by {gap}: take other weights"


def permuted(weight, heads):
    """llama.cpp's order of the rows of Q and K in `llama` files."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, 2, rows // 2, -1).transpose(0, 2, 1, 3).reshape(weight.shape)


def metadata(writer, config, arch):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    if arch == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "num_experts_per_tok"):
        experts = getattr(config, "num_local_experts", None) or config.num_experts
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if arch != "gemma2":
        writer.add_rope_freq_base(config.rope_theta)
    if arch in ("llama", "phi3"):
        writer.add_rope_dimension_count(int(head * getattr(config, "partial_rotary_factor", 1.0)))
    if arch in ("llama", "qwen3", "qwen3moe", "gemma2", "gemma3"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    scaling = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if kind == "longrope":
        original = config.original_max_position_embeddings
        times = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(times) / math.log(original)))


def rope_freqs(config):
    """The divisors of Llama 3.1's frequencies, which GGUF has as a tensor."""
    scaling, out = config.rope_scaling, []
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for pair in range(config.head_dim // 2):
        wave = 2 * math.pi * config.rope_theta ** (2 * pair / config.head_dim)
        turns = scaling["original_max_position_embeddings"] / wave
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        out.append(1 / ((1 - kept) / scaling["factor"] + kept))
    return numpy.array(out, dtype=numpy.float32)


def with_stacked_experts(state):
    """Names and weights, those of all of a layer's experts on top of each other."""
    stacks = {}
    for name, weight in state.items():
        layer, _, expert = name.partition(".experts.")
        if not expert:
            yield name, weight
            continue
        part = expert.split(".")[1]
        stacks.setdefault(f"{layer}.{part}", []).append(weight)
    for name, weights in stacks.items():
        layer, part = name.removeprefix("model.layers.").split(".")[::2]
        yield f"blk.{layer}.{EXPERT_NAMES[part]}.weight", torch.stack(weights)


def write_gguf(path, state, config, arch):
    writer = gguf.GGUFWriter(path, arch)
    metadata(writer, config, arch)
    if "llama3" == ((getattr(config, "rope_scaling", None) or {}).get("rope_type")):
        writer.add_tensor("rope_freqs.weight", rope_freqs(config))
    for part in ("long", "short"):
        factors = (getattr(config, "rope_scaling", None) or {}).get(f"{part}_factor")
        if factors:
            writer.add_tensor(f"rope_factors_{part}.weight", numpy.array(factors, dtype=numpy.float32))
    is_gemma = arch.startswith("gemma")
    for name, weight in with_stacked_experts(state):
        weight = weight.numpy()
        if name == "model.embed_tokens.weight":
            name = "token_embd.weight"
        elif name == "model.norm.weight":
            name = "output_norm.weight"
        elif name == "lm_head.weight":
            name = "output.weight"
        elif not name.startswith("blk."):
            layer, part = name.removeprefix("model.layers.").split(".", 1)
            part, kind = part.rsplit(".", 1)
            if arch == "llama" and part == "self_attn.q_proj":
                weight = permuted(weight, config.num_attention_heads)
            if arch == "llama" and part == "self_attn.k_proj":
                weight = permuted(weight, config.num_key_value_heads)
            part = (GEMMA_NAMES if is_gemma else GGUF_NAMES)[part]
            name = f"blk.{layer}.{part}.{kind}"
        if is_gemma and name.endswith("norm.weight"):
            weight = weight + 1.0
        if weight.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(name, weight.astype(numpy.float32))
        else:
            bits = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    transformers.utils.logging.set_verbosity_error()
    prompt = torch.randint(3, VOCAB, (PROMPT,), generator=torch.Generator().manual_seed(7)).tolist()
    for number, (name, (config, arch)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        model = model.float().eval()
        # The Llamas differ in RoPE only, so that they are one file to git.
        fill(model, 0 if arch == "llama" and name.startswith("llama") else number)
        model.tie_weights()
        tokens, logits = answer(model, prompt)
        if hasattr(config, "num_experts_per_tok"):
            check_routes(model, tokens)
        state = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
        if config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        # Matrices of bfloat16, which loses nothing; but Gemma's embedding scale is rounded to the
        # embedding's type, so that one is float32 like the arithmetic of the answer.
        stored = {
            k: v if v.ndim == 1 or ("Gemma" in type(model).__name__ and "embed" in k) else v.bfloat16()
            for k, v in state.items()
        }
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        model.config.architectures = [type(model).__name__]
        settings = model.config.to_diff_dict()
        settings.pop("transformers_version", None)
        (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
        write_gguf(folder / "model.gguf", state, config, arch)
        (folder / "tokens.json").write_text(json.dumps(tokens) + "\n")
        flat = logits.flatten().tolist()
        (folder / "logits.f32").write_bytes(struct.pack(f"<{len(flat)}f", *flat))
        print(f"{name}: logits up to {logits.abs().max():.2f}, spread {logits.std():.2f}")


main()
