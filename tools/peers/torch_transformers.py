"""transformers: python -m peers.torch_transformers FOLDER f32|bf16 THREADS; --make writes FOLDER.

FOLDER is a Hugging Face checkpoint of the same weights, made from an engine directory in f32. The
loop is the bare model with its KV cache, without generate() and what that does around each step.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from peers.worker import mean_nll, serve

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
NAMES = {  # ours -> theirs, of a layer
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class Transformers:
    """LlamaForCausalLM of one dtype."""

    def __init__(self, folder: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        transformers.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
        self._model.eval()
        attention = self._model.config._attn_implementation
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.about = f"{versions}, {attention} attention"

    def run(self, prompt: list[int], gen: int) -> tuple[float, float]:
        """As Peer.run."""
        began_at = time.perf_counter()
        token, past = self._step(torch.tensor([prompt]), None)
        first_at = time.perf_counter()
        for _ in range(gen):
            token, past = self._step(token, past)
        return first_at - began_at, time.perf_counter() - first_at

    def _step(self, ids: torch.Tensor, past: object) -> tuple[torch.Tensor, object]:
        out = self._model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.item()  # the id is known to the host
        return token, out.past_key_values

    def nll(self, ids: list[int]) -> float:
        """As Peer.nll."""
        logits = self._model(torch.tensor([ids]), use_cache=False).logits[0]
        return mean_nll(logits.float().numpy(), ids)


def write_checkpoint(source: Path, destination: Path) -> None:
    """The Hugging Face checkpoint in f32 of an engine directory in f32, tokenizer included."""
    params = json.loads((source / "params.json").read_text("utf-8"))
    config = transformers.LlamaConfig(
        hidden_size=params["dim"],
        intermediate_size=params["hidden_dim"],
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"],
        head_dim=params["head_dim"],
        rms_norm_eps=params["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": params["rope_theta"]},
        vocab_size=params["vocab_size"],
        max_position_embeddings=params["max_position_embeddings"],
        tie_word_embeddings=params["tied_embeddings"],
        bos_token_id=1,
        eos_token_id=2,
    )
    if not params["tied_embeddings"]:
        raise SystemExit("expected tied embeddings")
    model = transformers.LlamaForCausalLM(config)
    state = {}
    for name, tensor in load_file(source / "consolidated.safetensors").items():
        if name == "tok_embeddings.weight":
            state["model.embed_tokens.weight"] = state["lm_head.weight"] = tensor
        elif name == "norm.weight":
            state["model.norm.weight"] = tensor
        else:
            _, layer, rest = name.split(".", 2)
            module = rest.removesuffix(".weight")
            if module in ("attention.wq", "attention.wk"):
                tensor = half_split(tensor, params["head_dim"])
            state[f"model.layers.{layer}.{NAMES[module]}.weight"] = tensor
    model.load_state_dict(state, strict=True)
    partial = destination.with_name(destination.name + ".partial")
    model.float().save_pretrained(partial)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, partial / name)
    partial.rename(destination)


def half_split(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows whose rotary pairs are adjacent (Mistral's order) as halves of each head."""
    rows, columns = weight.shape
    pairs = weight.view(rows // head_dim, head_dim // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns).contiguous()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--make", source, destination]:
            write_checkpoint(Path(source), Path(destination))
        case [folder, dtype, threads]:
            serve(lambda: Transformers(folder, dtype, int(threads)))
