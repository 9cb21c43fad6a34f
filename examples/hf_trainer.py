"""Distil a text classifier inside the Trainer of the transformers library; the student sees few of the labels.

Usage::

    python examples/hf_trainer.py
    python examples/hf_trainer.py fancyzhx/ag_news --teacher google-bert/bert-base-uncased --labelled 25

A data set is named as the datasets library loads it, also a folder, and has the columns text and label. Without one the
texts are made up, and without a name the teacher is a small BERT; both learn from all labels first.
"""

import argparse
import random
import tempfile
from collections import Counter

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from tutelage import objectives
from tutelage.integrations.hf import DistillationTrainer

parser = argparse.ArgumentParser()
parser.add_argument("data", nargs="?")
parser.add_argument("--teacher")
parser.add_argument("--labelled", type=int, default=4, help="labels of each class that the student sees")
parser.add_argument("--epochs", type=int, default=4, help="of each student")
options = parser.parse_args()
Texts = list[tuple[str, int]]


def made_up(count: int) -> Texts:
    """Return texts of 12 words, some of which are those of their topic."""
    draw = random.Random(count)  # noqa: S311  nothing secret
    words = [f"word{k}" for k in range(60)]
    topics = [[f"topic{k}{each}" for each in "abcd"] for k in range(4)]
    return [
        (" ".join(draw.choice(topics[k % 4] if draw.random() < 0.25 else words) for _ in range(12)), k % 4)
        for k in range(count)
    ]


def read() -> tuple[Texts, Texts]:
    """Return the training and the test set."""
    if options.data is None:
        return made_up(480), made_up(240)
    from datasets import load_dataset

    splits = load_dataset(options.data)
    train, test = (list(zip(splits[name]["text"], splits[name]["label"], strict=True)) for name in ("train", "test"))
    return train, test


def tokenizer_of(texts: Texts) -> PreTrainedTokenizerBase:
    """Return the named teacher's tokenizer, or one of the most frequent words."""
    if options.teacher:
        return AutoTokenizer.from_pretrained(options.teacher)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    words = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    learner = trainers.WordLevelTrainer(vocab_size=8000, special_tokens=list(special.values()))
    words.train_from_iterator((text for text, _ in texts), learner)
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def bert(layers: int, width: int) -> PreTrainedModel:
    """Return a BERT of random weights."""
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=classes, num_attention_heads=width // 16, **sizes)
    return BertForSequenceClassification(config)


def rows(texts: Texts, *, labelled: int | None = None) -> list[dict[str, object]]:
    """Return the texts as tokens; all labels but the first few of each class are -100, which is none."""
    seen: Counter[int] = Counter()
    found = []
    for text, label in texts:
        seen[label] += 1
        shown = label if labelled is None or seen[label] <= labelled else -100
        found.append({**tokenizer(text, truncation=True, max_length=48), "labels": shown})
    return found


def accuracy(given: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((given.predictions.argmax(-1) == given.label_ids).mean())}


def arguments(folder: str, epochs: int, rate: float) -> TrainingArguments:
    return TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=rate,
        warmup_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


train, test = read()
classes = len({label for _, label in train})
tokenizer = tokenizer_of(train)
rest = {
    "data_collator": DataCollatorWithPadding(tokenizer),
    "eval_dataset": rows(test),
    "compute_metrics": accuracy,
}
set_seed(0)
with tempfile.TemporaryDirectory() as folder:
    if options.teacher:
        teacher = AutoModelForSequenceClassification.from_pretrained(options.teacher, num_labels=classes)
        args = arguments(folder, 1, 5e-5)
    else:
        teacher, args = bert(2, 64), arguments(folder, 3, 4e-3)
    trainer = Trainer(teacher, args, train_dataset=rows(train), **rest)
    trainer.train()
    found = {"teacher": trainer.evaluate()}
    for name, objective in {
        "student without a teacher": objectives.cross_entropy(),
        "student": objectives.wttm(gamma=0.5, beta=2.0),
    }.items():
        set_seed(0)
        # The lines that differ from a Trainer's: a teacher, and an objective.
        trainer = DistillationTrainer(
            bert(1, 32),
            arguments(folder, options.epochs, 4e-3),
            teacher=teacher,
            objective=objective,
            train_dataset=rows(train, labelled=options.labelled),
            **rest,
        )
        trainer.train()
        found[name] = trainer.evaluate()
for name, measured in found.items():
    print(f"{name}: accuracy {measured['eval_accuracy']:.1%}, loss {measured['eval_loss']:.3f}")
