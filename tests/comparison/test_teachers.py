"""Teachers: the weights with the lowest development loss are kept, even if the training is interrupted."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.comparison.student import document_nats
from pipeline.comparison.teachers import DEVELOPMENT, KeepBest, load_best, lowest_loss, train_teacher
from pipeline.training.metrics import evaluations
from tests.comparison.studies import CONFIG, VOCABULARY, WINDOWING, random_corpus, small_student


def test_a_teacher_is_the_model_of_the_lowest_development_loss(tmp_path: Path) -> None:
    seen, development, start = random_corpus(0), random_corpus(1), VOCABULARY - 1
    model = small_student(tmp_path / "student").new_model(0)
    teacher = train_teacher(model, seen, development, start, WINDOWING, CONFIG, tmp_path / "teacher")
    losses = [record[DEVELOPMENT] for record in evaluations(tmp_path / "teacher")]
    nats = document_nats(teacher, development, WINDOWING, start).sum()
    assert nats / len(development.tokens_N) == pytest.approx(min(losses), abs=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_only_a_lower_loss_replaces_the_saved_model(tmp_path: Path) -> None:
    models = [small_student(tmp_path / "student").new_model(seed) for seed in range(3)]
    losses = iter([3.0, 2.0, 2.5])
    keep = KeepBest(lambda _: {DEVELOPMENT: next(losses)}, tmp_path)
    assert lowest_loss(tmp_path) == np.inf
    for model in models:
        metrics = keep(model)
        with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(f'{{"{DEVELOPMENT}": {metrics[DEVELOPMENT]}}}\n')
    assert lowest_loss(tmp_path) == 2.0
    kept, second = (dict(model.state_dict()) for model in (load_best(tmp_path), models[1]))
    assert all((kept[name] == second[name]).all() for name in second)
