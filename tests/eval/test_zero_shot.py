import logging

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from groupvit_jax.data.sources.labelled import ImageFolder, LabelledFiles
from groupvit_jax.data.text.tokenizers import ClipTokenizer
from groupvit_jax.eval.encoding import IMAGENET_PROMPTS, Encoder
from groupvit_jax.eval.zero_shot import Classification, Retrieval, match_ranks
from groupvit_jax.models.preprocess import normalize
from tests.eval.conftest import make_mesh


def test_the_prompts_of_imagenet_are_the_published_ones():
    assert IMAGENET_PROMPTS == (
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )


WORDS = ["dog", "cat", "tree", "house", "boat", "sky", "grass", "person", "red", "blue", "old"]


def picture(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


class Pairs:
    """Pictures with one to three captions; one file is no image."""

    def __init__(self, count, broken=None):
        rng = np.random.default_rng(0)
        self.captions = [
            [" ".join(rng.choice(WORDS, 4)) for _ in range(1 + i % 3)] for i in range(count)
        ]
        self._broken = broken

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        data = b"no image" if index == self._broken else png(picture(index))
        return {"image": data, "captions": self.captions[index], "key": str(index)}

    def locate(self, index):
        return f"pair {index}"


def cosines(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.float64(a), np.float64(b)))
    return a @ b.T


@pytest.fixture(scope="module")
def embed(model, variables):
    """Embeds one image, or one text, at a time."""
    image = jax.jit(lambda x: model.apply(variables, normalize(x), method="encode_image")[0])
    text = jax.jit(lambda x: model.apply(variables, x, method="encode_text"))
    tokenizer = ClipTokenizer(32)

    def embed(item):
        if isinstance(item, str):
            return np.asarray(text(jnp.asarray(tokenizer([item]))))[0]
        return np.asarray(image(jnp.asarray(item[None])))[0]

    return embed


def expected_recalls(embed, pairs, kept):
    images = np.stack([embed(picture(i)) for i in kept])
    texts = [(i, embed(caption)) for i in kept for caption in pairs.captions[i]]
    owner = np.array([i for i, _ in texts])
    similarity = cosines(images, np.stack([t for _, t in texts]))
    result = {"images": len(kept)}
    for k in (1, 5, 10):
        best = np.argsort(-similarity, axis=1)[:, :k]
        hits = [i in owner[row] for i, row in zip(kept, best, strict=True)]
        result[f"image_to_text_r{k}"] = np.mean(hits)
        best = np.array(kept)[np.argsort(-similarity, axis=0)[:k]]
        result[f"text_to_image_r{k}"] = np.mean((best == owner).any(0))
    return result


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 1), (1, 7), (8, 32)])
def test_retrieval_counts_every_image_and_caption_once(
    model, variables, embed, num_devices, batch_size
):
    encoder = Encoder(model, ClipTokenizer(32), make_mesh(num_devices))
    pairs = Pairs(11)
    evaluator = Retrieval(encoder, pairs, batch_size=batch_size, resize=32, crop=32)
    found = evaluator(variables)
    assert found == pytest.approx(expected_recalls(embed, pairs, range(11)))
    assert 0 < found["image_to_text_r5"] < 1  # neither all nor nothing, so it can go wrong


def test_retrieval_leaves_out_what_is_broken_and_names_it(encoder, variables, embed, caplog):
    pairs = Pairs(9, broken=4)
    with caplog.at_level(logging.WARNING):
        found = Retrieval(encoder, pairs, batch_size=4, resize=32, crop=32)(variables)
    assert found == pytest.approx(expected_recalls(embed, pairs, [*range(4), *range(5, 9)]))
    assert "pair 4" in caplog.text


def test_retrieval_takes_the_first_captions_only(encoder, variables, embed):
    pairs = Pairs(9)
    evaluator = Retrieval(encoder, pairs, batch_size=4, captions_per_image=1, resize=32, crop=32)
    found = evaluator(variables)
    pairs.captions = [captions[:1] for captions in pairs.captions]
    assert found == pytest.approx(expected_recalls(embed, pairs, range(9)))


def test_retrieval_without_a_readable_image_is_an_error(encoder, variables):
    evaluator = Retrieval(
        encoder, Pairs(1, broken=0), name="pairs", batch_size=4, resize=32, crop=32
    )
    with pytest.raises(ValueError, match=r"pairs: none of 1 images"):
        evaluator(variables)


def test_query_without_an_answer_does_not_count():
    vectors = np.eye(3, dtype=np.float32)
    ranks = match_ranks(vectors, np.array([0, 1, 2]), vectors[:2], np.array([1, 0]))
    assert len(ranks) == 2


@pytest.fixture
def folder(tmp_path):
    for index in range(11):
        name = ("red_house", "dog", "tree")[index % 3]
        (tmp_path / name).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name / f"{index}.png"), picture(index)[..., ::-1])
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 1), (1, 7), (8, 32)])
def test_classification_counts_every_image_once(
    model, variables, embed, folder, num_devices, batch_size
):
    encoder = Encoder(model, ClipTokenizer(32), make_mesh(num_devices))
    images = ImageFolder(folder)
    evaluator = Classification(
        encoder, images, images.class_names, batch_size=batch_size, resize=32, crop=32
    )
    names = ["dog", "red house", "tree"]
    texts = [np.mean([embed(p.format(n)) for p in IMAGENET_PROMPTS], 0) for n in names]
    images = np.stack([embed(picture(i)) for i in range(11)])
    best = cosines(images, np.stack(texts)).argmax(1)
    truth = [names.index(("red house", "dog", "tree")[i % 3]) for i in range(11)]
    found = evaluator(variables)
    assert found == pytest.approx({"top1": np.mean(best == truth), "top5": 1.0, "images": 11})


def test_classes_of_one_name_stay_apart(encoder, variables, tmp_path):
    """As ImageNet's two missiles do."""
    (tmp_path / "1.png").write_bytes(png(picture(0)))
    names = ["missile", "dog", "missile"]
    source = LabelledFiles([tmp_path / "1.png"] * 3, [0, 1, 2], names)
    found = Classification(encoder, source, names, batch_size=4, resize=32, crop=32)(variables)
    assert found["top1"] == pytest.approx(1 / 3)  # the three labels of one image: one is right


def test_classes_are_the_folders_names(folder):
    source = ImageFolder(str(folder))
    assert source.class_names == ("dog", "red house", "tree")
    assert len(source) == 11
    assert source[0]["captions"] == ["dog"]
    assert source.locate(0).endswith("dog/1.png")


def test_folder_without_images_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images found"):
        ImageFolder(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(str(tmp_path / "nowhere"))


def test_class_embedding_is_the_normalised_mean_of_unnormalised_ones(encoder, variables, embed):
    prompts = ["a photo of a {}.", "the {}"]
    found = encoder.class_embeddings(variables, ["dog", "cat"], prompts)
    for row, name in zip(found, ["dog", "cat"], strict=True):
        mean = np.mean([embed(prompt.format(name)) for prompt in prompts], axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-4)


def test_classes_have_templates_of_their_own(encoder, variables, embed):
    names, prompts = ["dog", "Red_Panda|fire fox"], {"": ["a {}."], "Fire-fox": ["a bear"]}
    found = encoder.class_embeddings(variables, names, prompts)  # [2, 2 names, D]
    for rows, text in zip(found, ("a dog.", "a bear"), strict=True):
        expected = embed(text)
        np.testing.assert_allclose(rows, [expected / np.linalg.norm(expected)] * 2, atol=1e-4)


def test_prompt_without_a_place_for_the_name_is_an_error(encoder, variables):
    with pytest.raises(ValueError, match="a photo"):
        encoder.class_embeddings(variables, ["dog"], ["a photo"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [((None, None), (37, 32)), ((None, 224), (256, 224)), ((40, 30), (40, 30))],
)
def test_images_are_cropped_to_the_models_size(encoder, given, expected):
    assert encoder.image_sizes(*given) == expected
