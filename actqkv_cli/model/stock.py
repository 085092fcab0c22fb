"""A model's weights run by transformers: what ours is compared with."""

from typing import Any

import torch

from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.model.quiet import quiet_transformers


def stock_model(model: CausalLM) -> Any:
    """The same model as transformers' `PreTrainedModel`, sharing its weights; ready to run, with sdpa attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_transformers():
        config = AutoConfig.for_model(**model.config.model_dump(), bos_token_id=None, pad_token_id=None)
        with torch.device("meta"):
            stock = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation="sdpa")
        stock.load_state_dict(model.state_dict(), assign=True)
        stock.tie_weights()
        rotary = type(stock.model.rotary_emb)
        stock.model.rotary_emb = rotary(config=config).to(model.device)  # its numbers are in no state_dict
    return stock.eval().requires_grad_(False)
