"""GGUF files of tiny models, as llama.cpp's converter would write them."""

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from ssppo_jax.models.arch import tiny_arch
from ssppo_jax.weights import hf, names

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "Ġ t", "1 2", "Ġ 1", "! !"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def alphabet():
    """The 256 characters byte-level BPE writes bytes with."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def vocabulary():
    return [
        *SPECIALS,
        *alphabet(),
        *(merge.replace(" ", "") for merge in MERGES),
        "<user>",
        "[PAD]",
    ]


def kinds():
    return [3] * len(SPECIALS) + [1] * (256 + len(MERGES)) + [4, 5]


def interleave(rows, heads):
    """What llama.cpp's converter does to Q and K."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def make_arch(kind="llama", **changes):
    return tiny_arch(model_type=kind, vocab_size=len(vocabulary()), rope_theta=1e5, **changes)


def gguf_tensors(tree, arch):
    """The tensors of a tree by their GGUF names, as llama.cpp's converter would write them."""
    flat = dict(hf.flatten(tree))
    for leaf in names.leaves(arch):
        rows = flat[leaf.path] if leaf.stacked else flat[leaf.path][None]
        for n, row in enumerate(rows):
            value = names.to_hf(row, leaf, arch)
            if arch.model_type != "qwen2" and leaf.path.endswith(("q/kernel", "k/kernel")):
                heads = arch.num_heads if "/q/" in leaf.path else arch.num_kv_heads
                value = interleave(value, heads)
            yield leaf.gguf.format(n=n), value


def write_gguf(path, tree, arch, *, pre="smollm", drop=(), extra=None, **settings):
    """A float32 GGUF file of a tree, as llama.cpp's converter would write it."""
    writer = gguf.GGUFWriter(path, arch.model_type)
    writer.add_context_length(arch.max_positions)
    writer.add_embedding_length(arch.hidden_size)
    writer.add_block_count(arch.num_layers)
    writer.add_feed_forward_length(arch.mlp_dim)
    writer.add_head_count(arch.num_heads)
    writer.add_head_count_kv(arch.num_kv_heads)
    writer.add_rope_freq_base(arch.rope_theta)
    writer.add_layer_norm_rms_eps(arch.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary())
    writer.add_token_types(kinds())
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in settings.items():
        writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
    for name, value in ((extra or {}) | dict(gguf_tensors(tree, arch))).items():
        if name not in drop:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sentencepiece(pieces, letters):
    """A tokenizer as Llama 2's: of two merges the one to the piece that comes first in `pieces`."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate([*first, *pieces, *letters])}
    merges = [
        (piece[:i], piece[i:])
        for piece in pieces
        for i in range(1, len(piece))
        if piece[:i] in vocab and piece[i:] in vocab
    ]
    model = models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in first[:3]]
    )
    return tokenizer
