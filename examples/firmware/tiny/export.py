#!/usr/bin/env python3
"""A trained model as a GGUF file in F32, for `drllm quantize`.

usage: export.py WORK/model.pt WORK/vocabulary.json OUT.gguf
"""
import json
import sys

import gguf
import torch

import prepare
import train


def main():
    model_path, vocabulary_path, out_path = sys.argv[1:]
    saved = torch.load(model_path, map_location="cpu", weights_only=True)
    with open(vocabulary_path, encoding="utf-8") as file:
        vocabulary = json.load(file)
    shape, n_vocabulary = saved["shape"], len(vocabulary["texts"])

    writer = gguf.GGUFWriter(out_path, "llama")
    writer.add_name("Tiny KJV")
    writer.add_description("Written by examples/firmware/tiny of drllm; trained on the King James Version, which is in the public domain")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(n_vocabulary)
    writer.add_context_length(shape["n_context"])
    writer.add_embedding_length(shape["d_model"])
    writer.add_block_count(shape["n_layers"])
    writer.add_feed_forward_length(shape["d_ff"])
    writer.add_head_count(shape["n_heads"])
    writer.add_head_count_kv(shape["n_kv_heads"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(train.ROPE_THETA)
    writer.add_layer_norm_rms_eps(train.NORM_EPSILON)

    special = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    types = special + [gguf.TokenType.BYTE] * 256
    types += [gguf.TokenType.NORMAL] * (n_vocabulary - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary["texts"])
    writer.add_token_scores(vocabulary["scores"])
    writer.add_token_types(types)
    writer.add_unk_token_id(prepare.UNKNOWN)
    writer.add_bos_token_id(prepare.BEGIN)
    writer.add_eos_token_id(prepare.END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)

    for name, weight in saved["model"].items():
        name = name.removeprefix("weights.")
        if name.startswith("blk_"):
            _, layer, name = name.split("_", 2)
            name = f"blk.{layer}.{name}"
        writer.add_tensor(f"{name}.weight", weight.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    n_parameters = sum(weight.numel() for weight in saved["model"].values())
    print(f"{out_path}: {n_parameters} parameters, step {saved['step']}, training loss {saved['train_loss']:.4f}, validation loss {saved['valid_loss']:.4f}")


if __name__ == "__main__":
    main()
