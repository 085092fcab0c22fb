"""A question put to a stored document: the scout pass, the answer pass, and the decoding that follows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from actqkv_cli.engine.blocks import BlockCache
from actqkv_cli.engine.layer import LayerAttention
from actqkv_cli.engine.layout import Layout
from actqkv_cli.errors import StoreDamaged
from actqkv_cli.model.attention import Rotary, actqkv_attention, attention_cache, first_layers
from actqkv_cli.model.prompt import EncodedQuestion
from actqkv_cli.retrieval.policies import make_policy
from actqkv_cli.retrieval.policies.heads import block_sums
from actqkv_cli.retrieval.policy import Resident, RetrievalPolicy, Task
from actqkv_cli.store.reader import DocumentReader
from actqkv_kernels import Workspace


@contextmanager
def open_session(model: PreTrainedModel, reader: DocumentReader, budget: int | None = None) -> Iterator["Session"]:
    """Put our attention on the model and a document's resident part into memory.

    budget: tokens per layer beside the question; None: as many as the document was read with.
    """
    with actqkv_attention(model) as rotary:
        yield Session(model, rotary, reader, budget)


def load_resident(reader: DocumentReader, model: PreTrainedModel) -> Resident:
    """What of a document stays in memory, on the model's device. Raises StoreDamaged if it does not fit the model."""
    manifest, index = reader.manifest, {name: tensor.to(model.device) for name, tensor in reader.index().items()}
    resident = Resident(
        representatives=index["representatives"],
        query_heads=model.config.num_attention_heads,
        heads=tuple(manifest.retrieval_heads),
        head_keys=index.get("head_keys"),
        density=tuple(manifest.density),
    )
    if resident.heads:
        expected = (len(resident.head_rows), manifest.tokens, manifest.geometry.head_dim)
        found = None if resident.head_keys is None else tuple(resident.head_keys.shape)
        if found != expected or any(head.head >= resident.query_heads for head in resident.heads):
            raise StoreDamaged(f"{reader.folder}: the keys of the retrieval heads do not fit them or the model")
    return resident


class Session:
    """A model and an open document, ready for any number of questions. Made by `open_session`."""

    def __init__(self, model: PreTrainedModel, rotary: Rotary, reader: DocumentReader, budget: int | None) -> None:
        manifest = reader.manifest
        geometry, reading = manifest.geometry, manifest.reading
        self.model = model
        self.tokens = manifest.tokens
        self.budget = reading.budget if budget is None else budget
        self.layout = Layout(geometry.block_size, reading.sink, reading.local, self.budget)
        self.resident = load_resident(reader, model)
        self._reading = reading
        self._workspace = Workspace()
        self._rotary = rotary
        per_layer = self.layout.retrieved_blocks * 2 + (reading.sink + reading.local) // geometry.block_size
        self.source = BlockCache(reader.read_blocks, geometry.layers, per_layer, model.device)

    def task(self, question: EncodedQuestion) -> Task:
        return Task(
            resident=self.resident,
            candidates=self.layout.candidates(self.tokens),
            blocks=self.layout.retrieved_blocks,
            block_size=self.layout.block_size,
            tokens=self.tokens,
            ranked_from=min(self._reading.sink, self.tokens - 1),
            own=question.own,
            score=self._reading.score,
        )

    def start(self, question: EncodedQuestion, policy: str, room: int) -> "Run":
        """Feed a question and be ready to decode up to `room` tokens. Questions do not see one another."""
        return Run(self, make_policy(policy, self.task(question)), question, room)

    def layers(self, policy: RetrievalPolicy) -> list[LayerAttention]:
        positions, space = self._reading.positions, self._workspace
        return [
            LayerAttention(layer, self.source, policy.select, self._rotary, self.layout, positions, space)
            for layer in range(len(self.resident.representatives))
        ]


class Run:
    """One question in progress. `logits` `(V,)` fp32 are those of the next token."""

    def __init__(self, session: Session, policy: RetrievalPolicy, question: EncodedQuestion, room: int) -> None:
        ids = question.ids.to(session.model.device)
        self.policy = policy
        self._session = session
        self._layers = session.layers(policy)
        self._cache = attention_cache(self._layers)
        self.scout_seconds = 0.0
        room += len(ids)
        with torch.inference_mode():
            if policy.scout_layers:
                began = time.perf_counter()
                scouts = self._layers[: policy.scout_layers]
                for layer in scouts:
                    layer.begin(session.tokens, room)
                policy.begin("scout")
                with first_layers(session.model, policy.scout_layers):
                    session.model.model(input_ids=ids[None], past_key_values=self._cache, use_cache=True)
                self.scout_seconds = time.perf_counter() - began
            for layer in self._layers:
                layer.begin(session.tokens, room)
                layer.want_mass = True
            policy.begin("question")
            self.logits = self._forward(ids)
        mass = torch.stack([layer.document_mass(session.tokens) for layer in self._layers]).mean(dim=0)
        mass /= session.resident.query_heads * len(ids)
        mass[: session.task(question).ranked_from] = 0  # every head looks at the sink, whatever is asked
        self.ranking = policy.ranking(block_sums(mass, session.layout.block_size).cpu())
        for layer in self._layers:
            layer.want_mass = False

    @property
    def blocks_of_layers(self) -> list[Tensor]:
        """Ids of the retrieved blocks that each layer attends to now."""
        return [layer.chosen_blocks for layer in self._layers]

    @property
    def attended(self) -> set[int]:
        """The document's blocks that some layer attends to: sink, local window, and the retrieved ones."""
        layout, tokens = self._session.layout, self._session.tokens
        always = {
            *range(layout.sink_blocks(tokens)),
            *range(layout.near_start(tokens), -(-tokens // layout.block_size)),
        }
        return always.union(*(blocks.tolist() for blocks in self.blocks_of_layers))

    def step(self, token: int) -> Tensor:
        """Feed one token; returns (and keeps) the next token's logits `(V,)` fp32."""
        self.policy.begin("decode")
        with torch.inference_mode():
            self.logits = self._forward(torch.tensor([token], device=self.logits.device))
        return self.logits

    def _forward(self, ids: Tensor) -> Tensor:
        out = self._session.model(input_ids=ids[None], past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].float()
