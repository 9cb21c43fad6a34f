"""The files and runs that pages speak of, as small as they can be: nothing is fetched, networks have random weights."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tests._helpers import ROOT
from tests._helpers.pairs import write_pairs
from tests.pages.harness import blocks_of, named, typed

Give = Callable[..., None]
FLOWERS = {"daisy": (220, 200, 40), "rose": (200, 30, 60), "tulip": (60, 40, 200)}
REVIEWS = {"good": ("great", "love", "clear", "works"), "bad": ("broke", "returned", "noisy", "stopped")}
SMALL = ["device=cpu", "threads=1", "epochs=1", "weak_teacher=true"]
TINY = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
"""Sizes of a network of transformers."""
PICTURES = ["data.size=32", "data.workers=0", "batch_size=8"]


def picture(generator, colour, size=(40, 44)):
    pixels = generator.normal(colour, 20, (*size, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def write(name, rows):
    Path(name).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def save(page, file, **changes):
    """Write the recipe that a page shows as this file, with some of its texts changed."""
    (code,) = (block.code for block in blocks_of(page) if named(block) == file)
    for text, other in changes.items():
        assert text in code
        code = code.replace(text, other)
    Path(file).write_text(code, encoding="utf-8")


def run(*arguments):
    code, said = typed([*arguments])
    assert code == 0, said


def flowers(give: Give) -> None:
    """Folders of pictures in three colours, 12 a class, and pictures without a class."""
    generator = np.random.default_rng(0)
    for folder in ("flowers", "garden"):
        for name, colour in FLOWERS.items():
            Path(folder, name).mkdir(parents=True)
            for i in range(12):
                picture(generator, colour, (40 + i % 2, 44)).save(f"{folder}/{name}/{i}.jpg")
    Path("photos").mkdir()
    for i, colour in enumerate([*FLOWERS.values()] * 3):
        picture(generator, colour).save(f"photos/{i}.jpg")
    for name in ("rose", "tulip"):
        shutil.copy(f"flowers/{name}/0.jpg", f"{name}.jpg")


def flowers_runs(give: Give) -> None:
    """A teacher and a student of the flowers."""
    give("flowers")
    flowers = ["data.source=imagefolder:flowers", *PICTURES, *SMALL, "precision=fp32"]
    run("train", "model=timm:test_resnet", "name=flowers-teacher", *flowers)
    student = ["student=timm:test_vit", "teacher=runs/flowers-teacher"]
    run("distill", *student, "name=flowers-student", "objective.wttm.gamma=0.5", "objective.wttm.beta=1", *flowers)
    shutil.copytree("runs/flowers-student", "runs/flowers")


def student(give: Give) -> None:
    """The student's recipe of the README, which its run comes from."""
    give("flowers_runs")
    save(
        "README.md",
        "student.yaml",
        **{
            "torchvision:mobilenet_v3_small.IMAGENET1K_V1": "timm:test_vit",
            "workers: 4}": "size: 32}\nbatch_size: 8",
            "schedule: {name: cosine, warmup: 1}": "schedule: cosine",
        },
    )


def shards(give: Give) -> None:
    """Tar files in WebDataset's form, of the flowers."""
    give("flowers")
    for name in ("shards/train-000", "shards/train-001", "webdata/imagenet-val-0"):
        Path(name).parent.mkdir(exist_ok=True)
        with tarfile.open(f"{name}.tar", "w") as tar:
            for label, flower in enumerate(FLOWERS):
                for i in range(8):
                    Path("label").write_text(str(label))
                    tar.add(f"flowers/{flower}/{i}.jpg", f"{label}{i}.jpg")
                    tar.add("label", f"{label}{i}.cls")


def digits(give: Give) -> None:
    """The teacher of the recipes of digits."""
    run("train", str(ROOT / "recipes" / "digits-teacher.yaml"), *SMALL, "epochs=2")


def small_runs(give: Give) -> None:
    """Teachers and a student of digits, and a recipe for them."""
    for name in ("a", "b", "teacher"):
        run("train", "model=mlp:16", f"name={name}", "optimizer.lr=0.2", *SMALL)
    Path("recipe.yaml").write_text(
        "name: recipe\ndata: digits\nteacher: runs/teacher\nstudent: mlp:8\nobjective: kd\nepochs: 1\ndevice: cpu\n"
        "threads: 1\nweak_teacher: true\n"
    )
    run("distill", "recipe.yaml", "name=first")


def reviews(give: Give) -> None:
    """Texts of two classes, of which half the words tell the class."""
    draw = np.random.default_rng(0)
    rows = []
    for stars in ("good", "bad") * 30:
        words = [*REVIEWS[stars], "the", "sound", "it", "price"]
        rows.append((" ".join(draw.choice(words, draw.integers(4, 10))), stars))
    Path("reviews.csv").write_text("\n".join(map(",".join, [("review", "stars"), *rows])))
    Path("more-reviews.txt").write_text("\n".join(review for review, _ in rows))
    Path("report.txt").write_text("it broke, it stopped: returned")
    write("notes.jsonl", [{"text": review} for review, _ in rows])
    Path("prompt.txt").write_text("the sound")


def texts_runs(give: Give) -> None:
    give("reviews")
    save("docs/text.md", "reviews.yaml")
    run("distill", "reviews.yaml", "device=cpu", "threads=1")
    save("docs/tokens.md", "notes.yaml")
    run("distill", "notes.yaml", "device=cpu", "threads=1", "epochs=1")


def questions(give: Give) -> None:
    """Sums, as prompts with their completions and as conversations."""
    sums = [(f"{a} and {b}? ", str(a + b)) for a in range(6) for b in range(6)]
    write("questions.jsonl", [{"question": question, "answer": answer} for question, answer in sums])
    roles = ("user", "assistant")
    chats = [[{"role": role, "content": said} for role, said in zip(roles, each, strict=True)] for each in sums]
    write("chats.jsonl", [{"messages": chat} for chat in chats])


def captions(give: Give) -> None:
    """Pictures of digits with a text each."""
    rows = write_pairs(Path(), 400)
    Path("pictures").mkdir()
    for row in rows:
        Path(row["picture"]).rename(f"pictures/{row['picture']}")
        row |= {"file": f"pictures/{row.pop('picture')}", "class": row.pop("label")}
    write("captions.jsonl", rows)


def streets(give: Give) -> None:
    """Pictures whose left part is of one class and whose right part is of another, and their masks."""
    generator = np.random.default_rng(0)
    for number in range(20):
        at = int(generator.integers(8, 24))
        mask = np.zeros((32, 32), np.uint8)
        mask[:, at:] = 1
        colours = np.array([(90, 90, 90), (60, 160, 60)])[mask]
        for kind, pixels in (("images", generator.normal(colours, 20).clip(0, 255).astype(np.uint8)), ("masks", mask)):
            Path("streets", kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(f"streets/{kind}/{number:05}.png")
    Path("streets/classes.txt").write_text("road\ngrass\n")
    Image.open("streets/images/00000.png").save("street.jpg")


def streets_teacher(give: Give) -> None:
    give("streets")
    run(
        *("train", "model=torchvision:lraspp_mobilenet_v3_large", "name=streets-teacher", "data.source=masks:streets"),
        *(*PICTURES, *SMALL),
    )


def streets_run(give: Give) -> None:
    give("streets_teacher")
    Path("runs/streets-teacher").rename("runs/streets")


def weather(give: Give) -> None:
    """Reports with any of three labels, and a teacher of them."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(80):
        holds = {each: int(draw.random() < 0.5) for each in ("rain", "snow", "wind")}
        rows.append({"text": " ".join(["the day had", *(each for each, value in holds.items() if value)]), **holds})
    write("reports.jsonl", rows)
    save("docs/tasks.md", "weather.yaml", **{"teacher: runs/weather-teacher\n": ""})
    run("train", "weather.yaml", "name=weather-teacher", "objective=cross_entropy", "device=cpu", "threads=1")


def sentences(give: Give) -> None:
    give("reviews")
    lines = ["text", *Path("more-reviews.txt").read_text().splitlines()]
    Path("sentences.csv").write_text("\n".join(lines))


def networks(give: Give) -> None:
    """A tiny BERT and a tiny Llama as folders of transformers, each with a tokenizer."""
    import tokenizers
    import transformers

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|end|>"]
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=marks, initial_alphabet=alphabet)
    learned.train_from_iterator([" ".join(sum(REVIEWS.values(), ()))], trainer)
    sizes = {**TINY, "vocab_size": learned.get_vocab_size()}
    bert = transformers.BertConfig(num_labels=2, **sizes)
    llama = transformers.LlamaConfig(num_key_value_heads=2, **sizes)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    for name, network in (
        ("bert", transformers.BertForSequenceClassification(bert)),
        ("llama", transformers.LlamaForCausalLM(llama)),
    ):
        network.save_pretrained(f"models/{name}")
        end = {"eos_token": "<|end|>", "chat_template": template} if name == "llama" else {"cls_token": "[CLS]"}
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=learned, pad_token="[PAD]", unk_token="[UNK]", model_max_length=256, **end
        ).save_pretrained(f"models/{name}")


def answers(give: Give) -> None:
    """What a server might have said of each token of a completion, by the token's number."""
    import tokenizers

    give("networks", "questions")
    tokenizer = tokenizers.Tokenizer.from_file("models/llama/tokenizer.json")
    rows = []
    for row in map(json.loads, Path("questions.jsonl").read_text().splitlines()):
        numbers = [*tokenizer.encode(row["question"] + row["answer"]).ids, tokenizer.token_to_id("<|end|>")]
        said = [{str(number): {"logprob": -0.1}} for number in numbers]
        rows.append({"prompt": row["question"], "completion": row["answer"], "top_logprobs": [None, *said[1:]]})
    write("answers.jsonl", rows)


def cifar(give: Give) -> None:
    """Pictures of CIFAR-100's size in 100 classes, in Parquet, at a made-up path."""
    import datasets

    generator = np.random.default_rng(0)
    labels = datasets.ClassLabel(names=[f"class{k}" for k in range(100)])
    features = datasets.Features({"img": datasets.Image(), "fine_label": labels})
    Path("path/to/cifar100").mkdir(parents=True)
    for split, count in (("train", 300), ("test", 100)):
        pictures = [picture(generator, generator.uniform(0, 255, 3), (32, 32)) for _ in range(count)]
        rows = {"img": pictures, "fine_label": [k % 100 for k in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(f"path/to/cifar100/{split}-0.parquet")


def outputs(give: Give) -> None:
    """What a teacher said of digits, recorded."""
    give("digits")
    run("record", str(ROOT / "recipes" / "digits-wttm.yaml"), "outputs=runs/outputs/digits", "epochs=1", "device=cpu")


def elsewhere(give: Give) -> None:
    """A checkpoint as a training script leaves it."""
    import torch

    from tutelage.models import create

    Path("elsewhere").mkdir()
    states = [create("cifar:resnet20", classes=10).network.state_dict() for _ in range(2)]
    torch.save(dict(zip(("state_dict", "state_dict_ema"), states, strict=True)), "elsewhere/last.pth.tar")
