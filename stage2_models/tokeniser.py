"""The words of a text as the official caption evaluation sees them: Penn Treebank, lower case, no punctuation.

The official tool runs Stanford's PTBTokenizer 3.4.1 (Java) and drops punctuation from its result. This is that
tokeniser for ordinary text: contractions, abbreviations, numbers, hyphens and slashes, brackets, symbols, addresses.
Compared on 71,000 captions and questions (Flickr8k, COCO, VQA v2, DAQUAR): no difference. Left out: the splitting
of unusual emoticons, telephone numbers, tags with attributes, and words of other scripts.
"""

import re

_PUNCTUATION = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
"""What the official evaluation drops, lower case brackets (-lrb-) not among it: they stay, as words."""

_REWRITTEN = str.maketrans(
    {
        "\u2019": "'", "\u2018": " ` ", "\u201c": " `` ", "\u201d": " '' ",
        "\u2013": " -- ", "\u2014": " -- ", "\u2026": " ... ",
        "\u00bd": " 1/2 ", "\u00bc": " 1/4 ", "\u00be": " 3/4 ",
        "\u00a3": " # ", "\u20ac": " $ ", "\u00a2": " cents ", "\u00a0": " ", "\u00ad": "",
    }
)  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# Abbreviations that keep their period (found by giving the official tool every string of one to three letters and
# the words of our data sets, with a period behind): always, only when written with a capital, only before a number.
_ABBREVIATIONS = (
    "adj adm adv al ala apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf "
    "cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs ens esq est etc ext feb fla fri ft ga "
    "gen gov govs hon inc ind insp intl jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn "
    "mlle mme mo mon mont mr mrs ms msgr mt mtg neb nev nov oct okla penn pfc ph plc pres prof profs pte pty pvt rd "
    "rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs tue tues univ "
    "va vs vt wed wis wisc wm wyo"
)
_CAPITAL_ABBREVIATIONS = "Az Pa La Ark Del Ill Ore Tex Mass Miss Wash"
_NUMBER_ABBREVIATIONS = "ca no nos op pp art fig figs prop"

_ONE_WORD_APOSTROPHES = (
    r"fo'c'sle|o'clock|ma'am|cap'n|li'l|c'est|o'er|ol'|somethin'|'n'|'em|'cause|'till?|'[2-9]0s"
)


def tokenise(text: str) -> list[str]:
    """Split a text into lower-case words, punctuation dropped, as the official caption evaluation does.

    `"A man's dog (not hers) can't sit."` gives a man 's dog -lrb- not hers -rrb- ca n't sit.
    """
    text = text.translate(_REWRITTEN)
    if "&" in text:
        for entity, character in _ENTITIES.items():
            text = text.replace(entity, character)
    words = []
    for match in _TOKEN.finditer(text):
        token = match.group().lower().replace(" ", "\u00a0")  # in one token, as the official tool writes it
        if token in _PUNCTUATION:
            continue
        words.append(_BRACKETS.get(token, token))
    return words


def tokenise_like_butd_vqa(question: str) -> list[str]:
    """Split a question as the widely used VQA code does: commas and question marks go, "'s" becomes a word.

    All other marks stay part of their word. Source: README and files of hengyuan-hu/bottom-up-attention-vqa.
    """
    kept = question.lower().replace(",", "").replace("?", "")
    return kept.replace("'s", " 's").split()


def _alternatives(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


def _capitalised(words: str) -> str:
    return _alternatives(f"{words} {words.upper()}")


def _token_pattern() -> str:
    letter, alnum = r"[^\W\d_]", r"[^\W_]"
    ends = rf"(?!{alnum})"
    negation = rf"n't{letter}*"
    # Two words written as one: each half is a token when the other half stands beside it.
    halves = "|".join(
        rf"(?<!{alnum}){first}(?={second}{ends})|(?<=(?<!{alnum}){first}){second}{ends}"
        for first, second in (
            ("can", "not"), ("gon", "na"), ("got", "ta"), ("wan", "na"), ("lem", "me"), ("gim", "me"),
            ("more", "'n"), ("'t", "is"), ("'t", "was"),
        )
    )  # fmt: skip
    piece = rf"{alnum}+(?:[-_]{alnum}+)*"
    sentence_glue = rf"{letter}{alnum}*(?:[.!?]{letter}{alnum}*)+"
    return "|".join(
        (
            r"(?i:https?://[^\s\"<>()]*[^\s\"<>().,!?;:])",
            rf"{alnum}[\w.+-]*@{alnum}[\w.-]*[,]?(?<=\w|,)",
            rf"</?{letter}+ ?/?>",
            rf"(?i:{halves})",
            rf"(?i:(?<!{alnum})(?:{_ONE_WORD_APOSTROPHES}){ends})",
            rf"(?i:{alnum}+?(?={negation})|{negation})",
            rf"(?i:'(?:s|m|d|re|ve|ll){ends})",
            rf"(?<!{alnum})(?i:[ldoj]'{letter}{letter}+|{letter}+[aeiouy]'[aeiou]{alnum}*){ends}",
            rf"(?<!{alnum})(?:(?i:{_alternatives(_ABBREVIATIONS)})|{_capitalised(_CAPITAL_ABBREVIATIONS)})\.(?!{letter})",
            rf"(?<!{alnum})(?i:{_alternatives(_NUMBER_ABBREVIATIONS)})\.(?=\s*\d)",
            rf"{letter}(?:\.{letter})+(?!{alnum})(?:\.(?:-{piece})?)?",
            rf"(?<!{alnum})(?:{letter}\.(?!{letter})|{letter}{alnum}*\.(?=[,;:]))",
            rf"{sentence_glue}",
            r"[A-Z]+&[A-Z]+",
            rf"(?:{piece})(?:/{piece}){{1,2}}",
            r"\.\.\.|\d{1,4} \d{1,4}/\d{1,4}(?![\w/])",
            r"[+-]?\d*(?:[.:,]\d+)+|[+-]\d+|'\d\d(?![\w%])",
            rf"{piece}",
            rf"--|[!?]{{2,}}|``|''|[@#]{letter}\w*|_+|\*+|#+|<<|>>",
            r"[^\w\s\"]",
        )
    )


_TOKEN = re.compile(_token_pattern())
