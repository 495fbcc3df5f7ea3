"""The padded block tables of a step equal the block tables of its sequences, whatever has changed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from llava_worker.engine import Sequence
from llava_worker.engine.core.input_batch import Batch, PaddedTables
from llava_worker.engine.core.scheduler import Chunk


def expected(tables: list[list[int]]) -> np.ndarray:
    width = max(map(len, tables))
    return np.array([table + table[:1] * (width - len(table)) for table in tables])


@pytest.mark.parametrize("seed", range(20))
def test_padded_tables_follow_all_changes(seed: int) -> None:
    rng = random.Random(seed)
    padded = PaddedTables()
    tables = [[rng.randrange(100)] for _ in range(5)]
    for _ in range(60):
        change, table = rng.randrange(6), rng.choice(tables)
        if change == 0:
            tables.append([rng.randrange(100) for _ in range(rng.randint(1, 30))])
        elif change == 1 and len(tables) > 1:
            tables.remove(table)
        elif change == 2 and len(table) > 1:
            table.pop()
            table.append(rng.randrange(100))
        elif change == 3:
            rng.shuffle(tables)
        elif change == 4:
            table[:] = [rng.randrange(100) for _ in range(rng.randint(1, 10))]
        else:
            table.append(rng.randrange(100))
        np.testing.assert_array_equal(padded.pad(tables), expected(tables))


def test_tokens_on_the_device_are_used_instead_of_those_on_the_host() -> None:
    chunks = []
    for number in range(3):
        sequence = Sequence(seq_id=str(number), prompt_ids=[5] * 7, max_new_tokens=4)
        sequence.block_table = [number]
        chunks.append(Chunk(sequence, 7, 8, is_ahead=True))
    token_ids = torch.tensor([11, 12, 13])

    batch = Batch.build(chunks, block_size=16, device=torch.device("cpu"), token_ids=token_ids)

    assert batch.token_ids is token_ids
    assert batch.positions.tolist() == [7, 7, 7]
    assert batch.rows.slot_mapping.tolist() == [7, 16 + 7, 32 + 7]
    assert batch.sampled_rows.tolist() == [0, 1, 2]
