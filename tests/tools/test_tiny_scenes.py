"""Tests for the tiny LLaVA's training images, questions, token rows and evaluation."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tiny.conversations import KINDS, SYSTEM, ask_none, ask_one, ask_two
from tiny.drawing import GRID, IMAGE_SIZE, LABELS, draw, patch_labels, preprocess
from tiny.evaluation import Result, accuracy_table, evaluation_questions, is_right
from tiny.packing import make_batch, prompt_ids, training_ids
from tiny.questions import MAKERS
from tiny.scenes import SHAPES, sample_scene
from tiny.tokenizer import BOS, EOS, IMAGE, SIZE, build
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build()


def test_the_same_seed_renders_the_same_image() -> None:
    first, again = draw(sample_scene("a", 7)), draw(sample_scene("a", 7))
    assert first.tobytes() == again.tobytes()


def test_scenes_differ_by_stream_and_index() -> None:
    assert len({sample_scene(stream, index) for stream in ("a", "b") for index in range(20)}) == 40


def test_objects_do_not_touch_and_are_sorted_from_left_to_right() -> None:
    for scene in (sample_scene("apart", index) for index in range(200)):
        positions = [thing.x for thing in scene.objects]
        assert positions == sorted(positions)
        for number, one in enumerate(scene.objects):
            for other in scene.objects[number + 1 :]:
                assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius


def test_image_sizes_are_within_bounds() -> None:
    for scene in (sample_scene("sizes", index) for index in range(300)):
        assert min(scene.width, scene.height) >= 100
        assert max(scene.width, scene.height) <= 640
        assert max(scene.width, scene.height) <= 2 * min(scene.width, scene.height)


def test_a_wide_image_is_padded_with_the_mean_color() -> None:
    pixels = np.asarray(preprocess(Image.new("RGB", (200, 100), (255, 0, 0))))
    assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert tuple(pixels[0, 0]) == (122, 116, 104)
    assert tuple(pixels[IMAGE_SIZE // 2, IMAGE_SIZE // 2]) == (255, 0, 0)


def test_patch_labels_include_every_object_and_are_in_range() -> None:
    for index in range(50):
        scene = sample_scene("labels", index)
        labels = patch_labels(scene)
        assert labels.shape == (len(LABELS), GRID * GRID)
        assert all(row.max() < size for row, size in zip(labels, LABELS.values(), strict=True))
        assert set(labels[0]) - {0} == {1 + list(SHAPES).index(thing.shape) for thing in scene.objects}


def test_yes_and_no_answers_are_balanced() -> None:
    rng, answers = random.Random(0), Counter[str]()
    for index in range(2000):
        turn = MAKERS["exists"](sample_scene("balance", index), rng)
        if turn is not None:
            answers[turn.answer[:2]] += 1
    assert 0.46 < answers["Ye"] / answers.total() < 0.54


def test_yes_and_no_answers_are_correct() -> None:
    rng = random.Random(1)
    for index in range(500):
        scene = sample_scene("truth", index)
        turn = MAKERS["exists"](scene, rng)
        if turn is None:
            continue
        existing = {name for thing in scene.objects for name in (thing.shape, thing.name)}
        question = turn.question.split("\n")[0].rstrip("?.")
        asked = [
            word for word in question.replace("picture", "").split() if word not in ("in", "the", "image")
        ]
        name = " ".join(asked[max(asked.index(word) for word in ("a", "an") if word in asked) + 1 :])
        assert (name in existing) == turn.answer.startswith("Yes"), (question, scene.objects)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_a_prefix_of_the_training_tokens(kind: str, tokenizer: Tokenizer) -> None:
    rng = random.Random(kind)
    for index in range(30):
        scene = sample_scene("prefix", index)
        num_images = {"no picture": 0, "two pictures": 2}.get(kind, 1)
        conversation = (
            ask_none(scene, rng)
            if num_images == 0
            else ask_two(scene, scene, rng)
            if num_images == 2
            else ask_one(scene, kind, rng)
        )
        if conversation is None:
            continue
        trained, targets = training_ids(conversation.turns, "\n" if num_images else f"{SYSTEM} USER: ")
        prompt = prompt_ids(SYSTEM, conversation.turns, num_images)
        start = len(trained) - targets[::-1].index(False) if False in targets else 0
        assert prompt[len(prompt) - start :] == trained[:start]
        assert prompt[0] == BOS
        assert prompt.count(IMAGE) == num_images * GRID * GRID
        assert tokenizer.decode(trained[start:-1]).strip() == conversation.turns[-1].answer
        assert trained[-1] == EOS


def test_rows_contain_every_image_once_and_answers_end_with_eos() -> None:
    batch = make_batch("rows", 0, size=4, num_pairs=2)
    assert (batch.single.ids == IMAGE).sum() == 4 * GRID * GRID
    assert (batch.pairs.ids == IMAGE).sum() == 4 * GRID * GRID
    ends = batch.single.targets[:, :-1] & ~batch.single.targets[:, 1:]
    assert (batch.single.ids[:, :-1][ends] == EOS).all()
    assert not batch.single.targets[batch.single.segments == 0].any()


@pytest.mark.parametrize("text", ["Grüße, 日本 🙂", "a\tb\n\n c", "CAT 4205", "'quoted'  twice"])
def test_the_tokenizer_round_trips_any_text(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_characters_of_text_in_images_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode('"HOUSE"').tokens == ["▁", '"', *"HOUSE", '"']
    assert tokenizer.encode("4205").tokens == ["▁", *"4205"]
    assert tokenizer.encode("USER: a ASSISTANT:").tokens == ["▁USER", ":", "▁a", "▁ASSISTANT", ":"]
    assert tokenizer.get_vocab_size() == SIZE - 2


def test_scoring_ignores_the_order_only_in_descriptions() -> None:
    truth = 'The picture shows a red star, a blue heart and the word "CAT".'
    assert is_right(truth, 'The picture shows a blue heart, a red star and the word "CAT".')
    assert not is_right(truth, 'The picture shows a blue star, a red heart and the word "CAT".')
    assert not is_right(truth, "The picture shows a red star and a blue heart.")
    assert is_right("The circle is red.", "the circle is red")
    assert not is_right("The circle is red.", "The circle is blue.")


def test_the_evaluation_covers_every_kind_and_correct_answers_pass() -> None:
    questions = list(evaluation_questions(60))
    assert {question.kind for question in questions} == set(KINDS)
    assert accuracy_table([Result(question, question.truth) for question in questions])[1]
    assert not accuracy_table([Result(question, "Yes") for question in questions])[1]
