"""Predictions in the form that the official evaluation servers take."""

from collections.abc import Mapping
from typing import Any


def vqa_results(answers: Mapping[str, str]) -> list[dict[str, Any]]:
    """Give answers by question_id as the VQA challenge wants them; its own question ids are numbers."""
    return [
        {"question_id": int(key) if key.isdecimal() else key, "answer": answer}
        for key, answer in answers.items()
    ]
