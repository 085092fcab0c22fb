"""What answers from the cache are held against: the same model, stock, that is given a text and nothing else.

`gold`: the passage that the question came with, the ceiling of what the model can read; `reread`: the text of the
blocks that the default policy attended to, read anew.
"""

from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from actqkv_cli.bench.examples import Example
from actqkv_cli.bench.paired import Setting
from actqkv_cli.engine.context import Context
from actqkv_cli.engine.session import Session
from actqkv_cli.model.load import LoadedModel
from actqkv_cli.model.prompt import encode_document, encode_question
from actqkv_cli.model.quiet import quiet_transformers
from actqkv_cli.model.tokenizer import Tokenizer
from actqkv_cli.retrieval.lexical import block_texts

GOLD, REREAD = "gold", "reread"
YARDSTICKS = (GOLD, REREAD)


def texts(
    session: Session, tokenizer: Tokenizer, doc_index: int, example: Example, settings: Sequence[Setting]
) -> dict[Setting, str]:
    """What the model is given under those settings that are yardsticks. doc_index: as in
    `quality.measure_fidelity`."""
    question = encode_question(tokenizer, example.question, example.instruction, example.prefix)
    found = {}
    for policy, budget in settings:
        if policy == GOLD:
            found[policy, budget] = example.passage or example.context
        elif policy == REREAD:
            run = session.start(question, "hybrid", 1, budget or None)
            run.close()
            found[policy, budget] = _text_of(session.context, doc_index, run.attended)
    return found


def _text_of(context: Context, doc_index: int, blocks: set[int]) -> str:
    """The text of blocks of one document, in order."""
    block_text = block_texts(context.documents[doc_index].reader)
    ours = sorted(block - context.first_blocks[doc_index] for block in blocks)
    ours = [block for block in ours if 0 <= block < len(block_text)]
    # Blocks that are no neighbours do not run on into one another.
    begins = {block for before, block in pairwise([-2, *ours]) if before != block - 1}
    return "".join("\n\n" * (block in begins) + block_text[block] for block in ours).strip()


def stock_answers(stock: Any, loaded: LoadedModel, asked: Sequence[tuple[str, Example]]) -> list[str]:
    """What transformers alone generates, greedily, behind texts and questions, which go through the model together.

    stock: the model, as `model.stock` makes it; asked: questions of one length of answer.
    """
    prompts = []
    for text, example in asked:
        document = encode_document(loaded.tokenizer, [(1, 0, text)]).ids.long()
        question = encode_question(loaded.tokenizer, example.question, example.instruction, example.prefix).ids
        prompts.append(torch.cat([document, question]))
    stop = sorted(loaded.stop_tokens)
    pad = stop[0] if stop else 0
    ids = pad_sequence(prompts, batch_first=True, padding_value=pad, padding_side="left")
    length = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(ids.shape[1]) >= ids.shape[1] - length[:, None]
    with torch.inference_mode(), quiet_transformers():
        out = stock.generate(
            ids.to(loaded.device),
            attention_mask=mask.long().to(loaded.device),
            generation_config=type(stock.generation_config)(
                max_new_tokens=asked[0][1].max_tokens, do_sample=False, eos_token_id=stop, pad_token_id=pad
            ),
        )
    answers = (takewhile(lambda token: token not in stop, row) for row in out[:, ids.shape[1] :].tolist())
    return [loaded.tokenizer.decode(list(answer)).strip() for answer in answers]
