"""Makes the vocabularies of this folder, each in a GGUF file as llama.cpp's converter would lay it
out, and what SentencePiece and transformers make of some hundred texts. README.md says how to run
it and what the files are."""

import io
import json
import pathlib
import random
import tempfile

import gguf
import numpy
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AddedToken, GemmaTokenizer, LlamaTokenizer

HERE = pathlib.Path(__file__).parent
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

SENTENCES = """
The quick brown fox jumps over the lazy dog, and then the dog thinks about that for the whole day.
There is nothing in the world that another thousand tokens of training would not make better.
def main(arguments):    return [print(argument) for argument in arguments if argument is not None]
Die Würde des Menschen ist unantastbar; sie zu achten und zu schützen ist Verpflichtung.
Größere Übungen für schöne Äpfel, und dann noch einmal das Gleiche von vorn.
Déjà vu : l'été dernier, nous étions là où les forêts s'arrêtent près de la mer.
Съешь же ещё этих мягких французских булок, да выпей чаю. Быстрее, выше, сильнее.
今日は天気がいいから散歩しましょう。 私たちは東京に住んでいます。
我们今天去北京看天安门。 你好，世界！ 天气很好。
1234 5678 90 3.14159 2,718 1 000 000 42 aaaa aaaaaaaa abababab banana bananas
<b>bold</b> <table> <s> user: hello there assistant: hello back to you
""".strip().splitlines()

SHARDS = [
    "the", "The", " the", "a", "aa", "aaa", "aaaaa", "abab", "banana", "bananas", "thinking", "token",
    "ä", "Übung", "größer", "e\u0301", "é", "ﬁ", "Ⅻ", "русский", "булок", "привет", "日本", "今日は", "天气", "北京",
    "世界", "한국어", "สวัสดี", "שלום", "مرحبا", "😀", "👨‍👩‍👧", "🇩🇪", "🤷🏽‍♀️", "\u200b", "\u00a0", "\u3000", "\ufeff",
    "\U0001f9ff", "\U00010348", "\x00", "\x01", "\x7f", "\t", "\r\n", "\n", "\n\n", "\n\n\n", " ", "  ", "   ",
    "    ", "     ", "         ", "0", "12", "345", "6.78", ".", ",", "!", "?!", "...", "'s", "n't", "(", ")",
    "</b>", "<table>", "<tab", "le>", "{", "}", "def main():", "\\", "\"", "`", "▁", "▁▁", "▁the",
]
# What looks like a token that no text may become, whole and in part.
TOKENS = [
    "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<0x0A>", "<0xF0>", "[PAD1]", "<|user|>", "<|end|>",
    "<|assistant|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<start_of_turn", "<|user", "s>", "|>",
]


def texts():
    out = ["", " ", "  ", "\n", "a", "▁", "\x00"] + SENTENCES + SHARDS + TOKENS
    out += [f" {t}" for t in SHARDS[:8]] + [f"{t} " for t in SHARDS[:8]] + [f"  {t}  " for t in SHARDS[:8]]
    out += ["a" * n for n in (6, 7, 31, 64)] + [" " * n for n in (7, 8, 15, 33)] + ["ab" * 17, "\n" * 5]
    out += [
        "<s>[INST] hello [/INST] hello back </s><s>[INST] the end [/INST]",
        "<|user|>\nhello there<|end|>\n<|assistant|>\n", "<|user|> \t\n  the<|end|>  ",
        "<start_of_turn>user\nhello there<end_of_turn>\n<start_of_turn>model\n",
    ]
    dice = random.Random(5)
    for _ in range(160):
        out.append("".join(dice.choice(SHARDS + SHARDS + TOKENS) for _ in range(dice.randint(2, 9))))
    return list(dict.fromkeys(out))


def trained(**settings):
    """The model file of SentencePiece's BPE, as a message that can be changed."""
    dice, lines = random.Random(1), []
    for _ in range(600):
        words = " ".join(dice.sample(SENTENCES, 2)).split(" ")
        at = dice.randrange(len(words))
        lines.append(" ".join(words[at:] + words[:at]))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, character_coverage=0.98, num_threads=1, minloglevel=2, **settings)
    message = sentencepiece_model_pb2.ModelProto()
    message.ParseFromString(model.getvalue())
    return message


def write_gguf(path, arch, vocabulary, extra):
    """The smallest model that has this vocabulary, with the keys that the converter writes."""
    tokens, scores, types = vocabulary
    width, writer = 8, gguf.GGUFWriter(path, arch)
    writer.add_type("model")
    writer.add_name("Vocabulary")
    writer.add_file_type(0)
    writer.add_quantization_version(2)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    if arch == "phi3":
        writer.add_rope_scaling_orig_ctx_len(64)
        writer.add_sliding_window(32)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
        writer.add_sliding_window(32)
        writer.add_key_length(width)
        writer.add_value_length(width)
    else:
        writer.add_vocab_size(len(tokens))
        writer.add_rope_dimension_count(width)
        writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    extra(writer)
    zeros = lambda *shape: numpy.zeros(shape, dtype=numpy.float32)
    writer.add_tensor("token_embd.weight", zeros(len(tokens), width))
    writer.add_tensor("output_norm.weight", zeros(width))
    parts = ["attn_qkv"] if arch == "phi3" else ["attn_q", "attn_k", "attn_v", "ffn_gate"]
    for part in parts + ["attn_output", "ffn_up", "ffn_down"]:
        rows = {"attn_qkv": 3 * width, "ffn_up": 2 * width if arch == "phi3" else width}.get(part, width)
        writer.add_tensor(f"blk.0.{part}.weight", zeros(rows, width))
    norms = ["attn_norm", "ffn_norm"]
    for norm in norms + (["post_attention_norm", "post_ffw_norm"] if arch == "gemma2" else []):
        writer.add_tensor(f"blk.0.{norm}.weight", zeros(width))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary_of(message):
    pieces = message.pieces
    return [p.piece for p in pieces], [p.score for p in pieces], [p.type for p in pieces]


def add(vocabulary, token, kind, score=-1000.0):
    for column, value in zip(vocabulary, (token, score, kind)):
        column.append(value)


def write(name, arch, message, vocabulary, extra, tokenizer_of):
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(message.SerializeToString())
        file.flush()
        plain = sentencepiece.SentencePieceProcessor(model_file=file.name)
        special = tokenizer_of(file.name)
    lines = []
    for text in texts():
        # The converter writes Gemma's runs of spaces as spaces: a file no longer says that these are runs.
        if name == "gemma2" and "▁" in text:
            continue
        ids = plain.encode(text)
        case = dict(text=text, plain=ids, decoded=plain.decode(ids))
        case["special"] = special.convert_tokens_to_ids(special.tokenize(text))
        lines.append(json.dumps(case, ensure_ascii=True, separators=(",", ":")) + "\n")
    (HERE / f"{name}.jsonl").write_text("".join(lines))
    write_gguf(HERE / f"{name}.gguf", arch, vocabulary, extra)
    print(f"{name}: {len(vocabulary[0])} tokens, {len(lines)} texts")


def llama():
    message = trained(vocab_size=620)
    # Pieces that others are made through but that are no result, as a vocabulary cut to a language has.
    for piece in message.pieces:
        if piece.piece in ("▁th", "▁the", "▁tha", "an", "ana", "aa", "▁▁▁▁"):
            piece.type = UNUSED
        # By fours, so that there are equals.
        if piece.type in (NORMAL, UNUSED):
            piece.score = float(int(piece.score) // 4)
    vocabulary = vocabulary_of(message)
    for n in range(3):
        add(vocabulary, f"[PAD{n}]", UNUSED, -10000.0)

    def extra(writer):
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
        writer.add_chat_template(
            "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}")

    write("llama", "llama", message, vocabulary, extra, lambda file: LlamaTokenizer(file, legacy=True))


def phi3():
    message = trained(vocab_size=620)
    vocabulary = vocabulary_of(message)
    vocabulary[2][2] = USER_DEFINED  # </s>, which its tokenizer_config does not call special
    added = ["<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"]
    for token in added:
        add(vocabulary, token, CONTROL)

    def tokenizer_of(file):
        end = AddedToken("</s>", rstrip=True, normalized=False)
        tokenizer = LlamaTokenizer(file, legacy=True, eos_token=end)
        tokens = [AddedToken(t, rstrip=t != "<|endoftext|>", normalized=False, special=True) for t in added]
        tokenizer.add_tokens(tokens, special_tokens=True)
        assert tokenizer.convert_tokens_to_ids(added) == list(range(620, 624))
        return tokenizer

    def extra(writer):
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(620)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(620)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)

    write("phi3", "phi3", message, vocabulary, extra, tokenizer_of)


def gemma2():
    turns = ["<start_of_turn>", "<end_of_turn>"]
    runs = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<table>"]
    message = trained(
        vocab_size=620, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=turns + runs)
    for piece in message.pieces:
        if piece.piece in turns:
            piece.type = CONTROL
    tokens, scores, types = vocabulary_of(message)
    for id, kind in enumerate(types):
        if kind == USER_DEFINED:
            tokens[id], scores[id] = tokens[id].replace("▁", " "), -1000.0
    # Gemma's own configuration calls the turns' tokens ordinary, so that a converter may too.
    types[tokens.index("<end_of_turn>")] = USER_DEFINED

    def extra(writer):
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(False)

    write("gemma2", "gemma2", message, (tokens, scores, types), extra,
          lambda file: GemmaTokenizer(file, additional_special_tokens=turns))


llama()
phi3()
gemma2()
