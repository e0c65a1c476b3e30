"""Files for the official servers."""

from pipeline.result_files import vqa_results


def test_question_ids_of_the_challenge_are_numbers_and_others_stay_as_they_are() -> None:
    assert vqa_results({"262148000": "down", "train/7": "yes"}) == [
        {"question_id": 262148000, "answer": "down"},
        {"question_id": "train/7", "answer": "yes"},
    ]
