"""Small random multi-vector models, in the forms that the hub has them in."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from transformers import (
    ColQwen2Config,
    ColQwen2ForRetrieval,
    ColQwen2Processor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
)

from tests.tiny_model import SPECIAL_TOKENS, tiny_tokenizer

DIMENSION = 16


def build_encoder(plain: Path, folder: Path) -> Path:
    """Save a MultiVectorEncoder with a projection over a plain model; of a page only image tokens count."""
    torch.manual_seed(1)
    reader = Transformer(str(plain))
    tokens = "token_embeddings"
    projection = Dense(
        reader.get_embedding_dimension(),
        DIMENSION,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_input_name=tokens,
        module_output_name=tokens,
    )
    mask = MultiVectorMask(keep_only_token_ids=[reader.tokenizer.convert_tokens_to_ids("<|image_pad|>")])
    normalise = Normalize(module_input_name=tokens, module_output_name=tokens)
    model = MultiVectorEncoder(modules=[reader, projection, mask, normalise], prompts={"query": "Find the page."})
    model.save(str(folder), create_model_card=False)
    return folder


def build_colqwen(folder: Path) -> Path:
    """Save a ColQwen2 as transformers has it."""
    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    vlm = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(2)
    model = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=vlm.to_dict(), embedding_dim=DIMENSION))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    images = Qwen2VLImageProcessor(size={"shortest_edge": 784, "longest_edge": 10**6})
    ColQwen2Processor(images, tokenizer).save_pretrained(folder)
    return folder
