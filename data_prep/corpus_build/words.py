"""Words of a text, for filters and n-grams, without a language's own tokenizer.

datatrove's word tokenizer for English is spaCy's. This one needs nothing: what stands between
spaces, as in the rules of Gopher, and each character of scripts that put no spaces between words.
"""

import re

from datatrove.utils.word_tokenizers import WordTokenizer

_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_SENTENCE = re.compile(r"[^.!?\u3002\uff01\uff1f\n]+[.!?\u3002\uff01\uff1f\n]*")


class PlainWords(WordTokenizer):
    """Splits any language by the same rule."""

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [part.strip() for part in _SENTENCE.findall(text) if part.strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in _SENTENCE.finditer(text)]


WORDS = PlainWords()
