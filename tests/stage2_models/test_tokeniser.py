"""Our tokeniser against what the official one (Stanford PTBTokenizer 3.4.1, punctuation dropped) answers."""

import csv
import shutil
import subprocess
from pathlib import Path

import pytest

from stage2_models.tokeniser import tokenise

SHARED = Path(__file__).resolve().parents[3] / "shared"

# Answers of `java -cp stanford-corenlp-3.4.1.jar edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase`,
# without the punctuation that the official evaluation drops.
OFFICIAL = [
    ("A man's dog don't can't cannot it's they're I'm", "a man 's dog do n't ca n't can not it 's they 're i 'm"),
    ("girls' t-shirt (red) is [nice] {wow}", "girls t-shirt -lrb- red -rrb- is -lsb- nice -rsb- -lcb- wow -rcb-"),
    ("gonna wanna gotta lemme gimme 'tis 'twas more'n", "gon na wan na got ta lem me gim me 't is 't was more 'n"),
    ("1/2 of 3,000 at 5:30 p.m. 10:30am $5.00 50% #1", "1/2 of 3,000 at 5:30 p.m. 10:30 am $ 5.00 50 % # 1"),
    ("Mr. Smith and Dr. Jones on Main St. in the U.S.", "mr. smith and dr. jones on main st. in the u.s."),
    ("a 2 1/2 year old at 5:54pm..", "a 2\u00a01/2 year old at 5:54 pm"),
    ("wait... what -- yes - no black/white and/or w/o", "wait what yes no black/white and/or w/o"),
    ("\u201cLIFE\u2019S GOOD\u201d, a caf\u00e9\u2026", "life 's good a caf\u00e9"),
    ("rock 'n' roll o'clock ma'am 1990's '80s 80s", "rock 'n' roll o'clock ma'am 1990 's '80s 80s"),
    ("number no. 5 and no. She said no.", "number no. 5 and no she said no"),
    ("Are there M&Ms? AT&T, R&B & a&b", "are there m&m s at&t r&b & a & b"),
    ("a cat.The dog jumps on #20 @home #tag hello!world", "a cat.the dog jumps on # 20 @home #tag hello!world"),
    ("wearing a 5'6\" x-ray, 3-D 2x4 747-400 -5", "wearing a 5 6 x-ray 3-d 2x4 747-400 -5"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "official"), OFFICIAL)
def test_words_are_the_official_ones(text: str, official: str) -> None:
    assert tokenise(text) == official.split(" ")


@pytest.mark.parametrize("text", ["", " ", "...", "\t\n", "., ;"])
def test_text_without_words_gives_none(text: str) -> None:
    assert tokenise(text) == []


def test_words_joined_by_spaces_are_split_into_the_same_words() -> None:
    """Generated captions are words with spaces between; whoever scores their text must see the same words."""
    words = tokenise("A man's dog doesn't sit on Main St. at 5:30 p.m., it's a black-and-white T-shirt")
    assert tokenise(" ".join(words)) == words


@pytest.mark.slow
def test_flickr8k_captions_have_the_words_that_java_gives(tmp_path: Path) -> None:
    captions = SHARED / "data/flickr8k/captions.csv"
    jar = Path(pytest.importorskip("pycocoevalcap.tokenizer").__path__[0]) / "stanford-corenlp-3.4.1.jar"
    if not captions.is_file():
        pytest.skip("../shared/data is not here")
    if shutil.which("java") is None or not jar.is_file():
        pytest.skip("the official tokeniser needs Java")
    with captions.open(encoding="utf-8") as file:
        texts = [row["caption"] for row in csv.DictReader(file)]
    lines = tmp_path / "captions.txt"
    lines.write_text("\n".join(texts), encoding="utf-8")
    command = [
        "java",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ]
    output = subprocess.run([*command, str(lines)], capture_output=True, check=True, text=True).stdout
    dropped = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
    official = [[word for word in line.split(" ") if word not in dropped] for line in output.splitlines()]
    assert len(texts) == 4000
    assert [tokenise(text) for text in texts] == official
