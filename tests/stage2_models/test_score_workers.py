"""Scoring in processes: the same scores, and no silence when one dies."""

import os
import signal

import numpy as np
import pytest

from stage2_models.cider import CiderD
from stage2_models.score_workers import ScoreWorkerError, ScoreWorkers

REFERENCES = [[["a", "red", "ball"]], [["a", "cup"], ["the", "blue", "cup"]], [["two", "dogs"]]]


def _jobs(scorer: CiderD) -> list[tuple[list[int], list[np.ndarray]]]:
    texts = [(0, "a red cup"), (1, "the blue cup"), (1, ""), (2, "two red dogs"), (0, "ball")]
    encoded = [(picture, scorer.encode(text.split())) for picture, text in texts]
    return [([p for p, _ in part], [c for _, c in part]) for part in (encoded, encoded[:1])]


def test_scores_are_the_same_in_this_process_and_in_others_job_by_job() -> None:
    scorer = CiderD(REFERENCES, with_end=True)
    found = []
    for workers in (0, 2):
        pool = ScoreWorkers(scorer, workers)
        for _ in range(2):  # jobs of one step do not mix with the next's
            for job in _jobs(scorer):
                pool.submit(*job)
            found.append([scores.tolist() for scores in pool.collect()])
    assert len(found[0][0]) == 5
    assert all(scores == found[0] for scores in found)


def test_a_dead_process_is_named_and_nothing_hangs() -> None:
    scorer = CiderD(REFERENCES, with_end=True)
    pool = ScoreWorkers(scorer, 2)
    job = _jobs(scorer)[0]
    pool.submit(*job)
    pool.collect()
    process = pool._processes[1][0]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    def score_again() -> None:
        pool.submit(*job)
        pool.collect()

    with pytest.raises(ScoreWorkerError, match=r"dead \(exit code -9\).*fewer losses.score_workers"):
        score_again()


def test_an_error_while_scoring_arrives_with_its_words() -> None:
    scorer = CiderD(REFERENCES, with_end=True)
    pool = ScoreWorkers(scorer, 1)
    pool.submit([99], [scorer.encode(["a"])])
    with pytest.raises(ScoreWorkerError, match="could not be scored: IndexError"):
        pool.collect()
